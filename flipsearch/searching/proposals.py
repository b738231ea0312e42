"""Where the next contexts come from: points of the space and children of the best arms, chosen by what they promise.

    templates ------ points ----┐
                                ├─ candidates --surrogate (searching.surrogate)--> samples --> the contexts that race
    arms --breeder-- children --┘

Each context is the best candidate in one sample from the posterior (Thompson sampling): what is likely to be good is
tried, and what might be, as often as it might. It is a trial of an Optuna study, with the parameters of its point. The
same seed, arms and outcomes give the same contexts: nothing is stored, and a search is rebuilt by proposing again, with
every outcome taken from the ledger.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from flipsearch.core.records import Context, Label, Prompt
from flipsearch.core.studies import Parent
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.breeder import Breeder, ContextFilter
from flipsearch.searching.race import Arm
from flipsearch.searching.setup import SearchSetup
from flipsearch.searching.surrogate import Surrogate
from flipsearch.statistics.mixed_model import Array

CANDIDATES, MOST_CANDIDATES = 12, 512
"""Candidates for each context that races, or for each of a cohort; at most so many, or as many as race."""
ATTEMPTS = 8
"""Points sampled for each that is needed, before all are enumerated."""
NUM_PARENTS = 8
"""A text is a parent as often as it is one of so many best in a sample."""


class Proposals:
    """Proposes contexts that were not proposed before."""

    def __init__(self, setup: SearchSetup, runner: Runner, base: SplitBaseline, surrogate: Surrogate) -> None:
        config, prompts = setup.config, [prompt.text for prompt in base.prompts]
        count_tokens, same = runner.backend.count_tokens, setup.same_placements
        self._filter = ContextFilter(prompts, count_tokens, config.max_context_tokens, same)
        self.breeder = Breeder(setup.operators, self._filter, config.seed)
        self._space, self._config, self._surrogate = setup.space, config, surrogate
        self._prompts = {prompt.prompt_id: prompt for prompt in base.prompts}
        self._random = random.Random(config.seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(direction="maximize")
        """A trial for every context that was proposed, in order, at the point that was chosen for it."""
        self._trials: dict[str, optuna.Trial] = {}
        """Context id -> its trial; every context that was proposed."""
        self._is_exhausted = False
        self._start = list(setup.start)
        """Contexts that are still to be tried before all others."""
        self._notes: list[str] = []

    def propose(self, num: int, arms: Sequence[Arm]) -> list[Context]:
        """Return up to `num` new contexts; fewer only if neither templates nor operators give more.

        The candidates are points of the space and, once there are parents, as many children as `--breed` says.
        """
        contexts = self._from_start(num)
        able, num = [arm for arm in arms if arm.state in ("running", "complete")], num - len(contexts)
        if not num:
            return contexts
        # Where a budget makes generations small, candidates are still weighed by the cohort: no answer is generated.
        width = max(num, self._config.cohort_size)
        num_candidates = max(num, min(CANDIDATES * width, MOST_CANDIDATES))
        parents, weights = likely_parents(self._surrogate, able, self._prompts)
        children = self.breeder.breed(parents, int(num_candidates * self._config.breed), weights) if parents else []
        candidates = [*self._points(num_candidates - len(children)), *children]
        written = [context for context in candidates if self.breeder.is_costly(context.operator)][:num]
        candidates, num = [context for context in candidates if context not in written], num - len(written)
        if num and self._surrogate.prefix_scores.num_prompts and self._config.screen > 1:
            candidates = self._chosen(self._config.screen * width, able, candidates)
            self._surrogate.prefix_scores.add([*(arm.context for arm in able), *candidates])
        chosen = [*written, *self._chosen(num, able, candidates)]
        for context in chosen:
            self._begin_trial(context)
        return [*contexts, *chosen]

    def report_outcome(self, arm: Arm) -> None:
        """Give Optuna the outcome of an arm that will not run on, or ran as far as it got."""
        trial, search = self._trials[arm.context.context_id], arm.search
        if arm.state == "failed" or search.flip_rate.value is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        cap = self._config.refusal_cap()
        trial.set_constraint("over_refusal", (cap.rate(search).value or 0.0) - cap.most)
        self.study.tell(trial, search.flip_rate.value)

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of where the contexts came from."""
        notes = self._notes.copy()
        if self._start:
            sources = ", ".join(dict.fromkeys(str(dict(context.params)["from"]) for context in self._start))
            why = "as --num-contexts is smaller"
            notes.append(f"{len(self._start)} contexts of --start were not tried, {why}: {sources}.")
        if self._is_exhausted and num_arms < self._config.num_contexts:
            notes.append(f"The space is exhausted: it holds {num_arms} different contexts.")
        return notes

    def _from_start(self, num: int) -> list[Context]:
        """Up to `num` of the contexts that are tried first; one that must not race is in the notes."""
        able: list[Context] = []
        while self._start and len(able) < num:
            context = self._start.pop(0)
            source = dict(context.params)["from"]
            if objection := self._filter.objection(context):
                self._notes.append(f"A context of --start {source} was left out: {objection}.")
                continue
            self._notes.append(f"A context of --start {source} was tried first: {context.context_id}.")
            self._begin_trial(context)
            able.append(context)
        return able

    def _points(self, num: int) -> list[Context]:
        """New contexts of the space, the templates in turn; all that are left if there are fewer."""
        contexts: dict[str, Context] = {}
        names = self._space.names.copy()
        self._random.shuffle(names)
        for turn in range(ATTEMPTS * num):
            if len(contexts) >= num:
                break
            self._take(self._space.sample(names[turn % len(names)], self._random), contexts)
        if len(contexts) < num:
            size = len(self._space)
            start = self._random.randrange(size)
            for step in range(size):
                if len(contexts) >= num:
                    break
                self._take(self._space.point((start + step) % size), contexts)
            self._is_exhausted = len(contexts) < num
        return list(contexts.values())

    def _take(self, point: Mapping[str, Any], contexts: dict[str, Context]) -> None:
        context = self._space.context(point)
        if context.text and context.context_id not in self._trials and context.context_id not in contexts:
            contexts[context.context_id] = context

    def _chosen(self, num: int, arms: Sequence[Arm], candidates: Sequence[Context]) -> list[Context]:
        """Return the best candidate of each sample, `num` different ones; the first ones while nothing is known."""
        if len(candidates) <= num:
            return list(candidates)
        if not arms and not self._surrogate.prefix_scores.num_contexts:
            return list(candidates[:num])
        worth = self._surrogate.sample(arms, candidates).worth[:, len(arms) :]
        return [candidates[index] for index in best_of_samples(worth, num)]

    def _begin_trial(self, context: Context) -> None:
        point = None if context.operator else self._space.point_of(context)
        if point:
            self.study.enqueue_trial(point)
        trial = self.study.ask()
        if point:
            self._space.suggest(trial)
        trial.set_user_attr("context", context.text)
        self._trials[context.context_id] = trial
        self._filter.add(context)


def best_of_samples(worth: Array, num: int) -> list[int]:
    """Return `num` different columns, each the best one of a sample (row) not taken yet; then by their mean."""
    chosen: list[int] = []
    for sample in worth:
        if len(chosen) == min(num, worth.shape[1]):
            break
        left = np.delete(np.arange(len(sample)), chosen)
        chosen.append(int(left[np.argmax(sample[left])]))
    chosen += [int(index) for index in np.argsort(-worth.mean(axis=0)) if index not in chosen]
    return chosen[:num]


def likely_parents(
    surrogate: Surrogate, arms: Sequence[Arm], prompts: Mapping[str, Prompt]
) -> tuple[list[Parent], list[float]]:
    """Return the arms that may be among the NUM_PARENTS best, with how often they are as weights.

    Not by the best alone: children of one text are soon all known, and crossed with itself it gives nothing new.
    """
    if not arms:
        return [], []
    worth = surrogate.sample(arms).worth
    best = np.argsort(-worth, axis=1, kind="stable")[:, :NUM_PARENTS]
    weights = np.bincount(best[np.take_along_axis(worth, best, axis=1) > 0], minlength=len(arms))
    return [_parent(arms[i], prompts) for i in np.flatnonzero(weights).tolist()], [float(w) for w in weights if w]


def _parent(arm: Arm, prompts: Mapping[str, Prompt]) -> Parent:
    """The arm with the texts of the prompts that it failed on."""
    flips = arm.search.flips
    unflipped = [flip for flip in flips if flip.kind == "harmful" and flip.after is Label.UNSAFE]
    refused = [flip for flip in flips if flip.kind == "benign" and flip.refused_after and not flip.refused_before]
    broken = [flip for flip in flips if flip.kind_after == "degenerate"]
    texts = [tuple(prompts[flip.prompt_id].text for flip in failures) for failures in (unflipped, refused, broken)]
    return Parent(arm.context, arm.search.flip_rate, *texts)
