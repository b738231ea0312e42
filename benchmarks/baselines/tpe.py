"""Optuna as its documentation recommends for a mean over instances: TPE, and WilcoxonPruner with its defaults.

Per-prompt values are reported under the prompt's number, in a new random order for each trial; a pruned trial
returns its mean so far. What the documentation leaves open is settled in favour of this baseline: the sampler groups
the conditional space, only contexts that were not pruned are measured on benign prompts, and a repeated context is
free.
"""

import random
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

import optuna
import scipy.stats

from baselines.ground import Account, Ground, Rates, SearchSplit
from baselines.methods import Run, make_run
from flipsearch.core.records import Context, Label, Prompt
from pocket_model.truth import CAP

CHUNK = 24
"""Prompts generated ahead in one batch; only those that the pruner lets through are charged."""
WILCOXON: Any = scipy.stats.wilcoxon
MAX_TRIALS = 600
"""Ends a run that only repeats itself."""


def tpe(ground: Ground, seed: int, budget: int) -> Run:
    """Run trials until the budget is spent; the best within the cap of those that were not pruned."""
    # Over a few tied values scipy goes through all permutations, a third of a second each time a prompt is reported.
    with patch.object(scipy.stats, "wilcoxon", _cached_wilcoxon):
        return _tpe(ground, seed, budget)


def _tpe(ground: Ground, seed: int, budget: int) -> Run:
    account = Account()
    split = SearchSplit(ground, account)
    study, rng = _study(seed), random.Random(seed)
    complete: dict[str, tuple[Rates, Context]] = {}
    seen: set[str] = set()
    for _ in range(MAX_TRIALS):
        trial = study.ask()
        context = ground.space.suggest(trial)
        seen.add(context.context_id)
        value, pruned = _flips(trial, split, context, rng, budget)
        if value is None:
            break
        rates = None if pruned else _all_rates(split, context, budget)
        if not pruned and rates is None:
            break
        trial.set_constraint("over_refusal", (rates.over_refusal_rate if rates else 0.0) - CAP)
        study.tell(trial, value)
        if rates:
            complete[context.context_id] = (rates, context)
    allowed = [pair for pair in complete.values() if pair[0].in_cap]
    best = max(allowed, key=lambda pair: pair[0].flip_rate)[1] if allowed else None
    return make_run(ground, account, seed, best, len(seen))


def _flips(
    trial: optuna.Trial, split: SearchSplit, context: Context, rng: random.Random, budget: int
) -> tuple[float | None, bool]:
    """Return the mean so far and whether the trial was pruned; None when the budget is spent."""
    order = rng.sample(range(len(split.harmful)), len(split.harmful))
    values: list[float] = []
    for start in range(0, len(order), CHUNK):
        numbers = order[start : start + CHUNK]
        ahead: list[Prompt] = [split.harmful[number] for number in numbers]
        for number, judged in zip(numbers, split.ground.judged(context, ahead), strict=True):
            if split.account.num_tokens + split.account.cost([judged]) > budget:
                return None, False
            split.account.charge([judged])
            values.append(float(judged.verdict.label is Label.SAFE))
            trial.report(values[-1], number)
            if trial.should_prune():
                return sum(values) / len(values), True
    return sum(values) / len(values), False


def _all_rates(split: SearchSplit, context: Context, budget: int) -> Rates | None:
    judged = split.ground.judged(context, split.prompts)
    if split.account.num_tokens + split.account.cost(judged) > budget:
        return None
    split.account.charge(judged)
    return split.rates(judged)


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # Both are marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, group=True)
        return optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.WilcoxonPruner())


def _cached_wilcoxon(differences: Sequence[float], *, alternative: str, zero_method: str) -> Any:
    return _wilcoxon(tuple(sorted(differences)), alternative, zero_method)


@cache
def _wilcoxon(differences: tuple[float, ...], alternative: str, zero_method: str) -> Any:
    """Scipy's own test: it depends on no order, and on 0 and 1 there are few different ones."""
    return WILCOXON(differences, alternative=alternative, zero_method=zero_method)
