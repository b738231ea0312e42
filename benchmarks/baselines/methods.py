"""Search methods without a model of their own: the paper's procedure, random search, and flipsearch's own engine.

Each takes the ground, a seed and, except for the paper's, a budget of completion tokens, and returns a `Run`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from baselines.ground import Account, Ground, SearchSplit, flip_share, random_contexts, refusal_share
from flipsearch.config import SearchConfig
from flipsearch.core.records import Context, Label, Prompt
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.searching import prepare_search, run_study
from pocket_model.truth import CAP

POOL = 30
"""Candidates of the paper's search."""
AHEAD = 8
"""Contexts generated ahead in one call; only those that the budget lets through are charged."""


@dataclass(frozen=True)
class Run:
    """One run of one method."""

    seed: int
    context: Context | None
    """The winner; None if nothing was admissible."""
    num_contexts: int
    """Contexts tried."""
    num_tokens: int
    """Completion tokens that the choice rests on."""
    num_all_tokens: int
    """Including the confirm split and placebos."""
    num_prompt_tokens: int
    """Tokens of prompts and contexts encoded for all of these, and for prefix scores."""


def make_run(ground: Ground, account: Account, seed: int, context: Context | None, num_contexts: int) -> Run:
    """Return the run of a complete account."""
    num_prompt_tokens = ground.num_prompt_tokens(account) + account.num_scoring_tokens
    return Run(seed, context, num_contexts, account.num_tokens, account.num_all_tokens, num_prompt_tokens)


def paper(ground: Ground, seed: int, sampling: str, *, capped: bool = False) -> Run:
    """OPSA, Eq. 5: argmax TFR over 30 contexts, each on all harmful prompts; `capped` uses the benign ones too."""
    account = Account()
    harmful = ground.prompts("harmful", ["search", "confirm"])
    benign = ground.prompts("benign", ["search", "confirm"])
    base = ground.judged(None, harmful)
    account.charge(base)
    rated: list[tuple[float, Context]] = []
    pool = list(islice(random_contexts(ground, seed, sampling), POOL))
    ground.prefetch((context, [*harmful, *benign] if capped else harmful) for context in pool)
    for context in pool:
        judged = ground.judged(context, harmful)
        account.charge(judged)
        unsafe = [after for before, after in zip(base, judged, strict=True) if before.verdict.label is Label.UNSAFE]
        on_benign = ground.judged(context, benign) if capped else []
        account.charge(on_benign)
        if not capped or refusal_share(on_benign) <= CAP:
            rated.append((flip_share(unsafe), context))
    best = max(rated, key=lambda pair: pair[0], default=(0.0, None))[1]
    return make_run(ground, account, seed, best, POOL)


def random_search(ground: Ground, seed: int, sampling: str, budget: int) -> Run:
    """Random contexts on the whole search split until the budget is spent; the best within the cap."""
    account = Account()
    split = SearchSplit(ground, account)
    best, best_rate, num_contexts = None, -1.0, 0
    for context in _prefetched(ground, random_contexts(ground, seed, sampling), split.prompts):
        judged = ground.judged(context, split.prompts)
        if account.num_tokens + account.cost(judged) > budget:
            break
        account.charge(judged)
        num_contexts += 1
        rates = split.rates(judged)
        if rates.in_cap and rates.flip_rate > best_rate:
            best, best_rate = context, rates.flip_rate
    return make_run(ground, account, seed, best, num_contexts)


def _prefetched(ground: Ground, contexts: Iterator[Context], prompts: Sequence[Prompt]) -> Iterator[Context]:
    while chunk := list(islice(contexts, AHEAD)):
        ground.prefetch((context, prompts) for context in chunk)
        yield from chunk


def ours(ground: Ground, seed: int, settings: Mapping[str, Any], *, sealed: bool) -> Run:
    """A flipsearch study with these settings; without `sealed` it has no placebos, and next to no confirm split."""
    values = ground.config.model_dump() | dict(settings) | {"seed": seed, "max_over_refusal": CAP}
    plan = prepare_search(SearchConfig(**values), ground.library, ground.all_prompts)
    if not sealed:
        plan = replace(plan, placebos=(), confirm=first_of_each_kind(plan.confirm, 1))
    runner = ground.metered()
    study = run_study(plan, runner)
    num_contexts = sum(trial.role == "arm" for trial in study.trials)
    return make_run(ground, runner.account, seed, study.winner.context if study.winner else None, num_contexts)
