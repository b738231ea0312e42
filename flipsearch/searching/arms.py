"""The search itself: generations of contexts are proposed, raced and learned from, and the likely best promoted.

    propose --> first rung --> surrogate --> the likely best arms are promoted by one rung --> propose ...

Both halves of a generation follow the surrogate (searching.surrogate): which contexts are tried, and which arms see
more prompts. When all contexts are tried, or the exploring share of a budget is spent, the best arms are promoted to
the last prompts, until no other arm is likely to be better than those that saw them all, by more than the tolerance.

In the race all arms that run a rung share one call of the backend, and the hopeless ones are pruned after it. The best
arm within the cap is pruned with probability at most alpha, however often it is tested: half of alpha goes to its flip
rate, half to its over-refusal. Both tests are e-processes (statistics.intervals) over the prompts seen so far.

Flip rate: on the prompts where exactly one of two arms flips, the better arm is the one that flips on at least half of
them. The evidence against an arm is the mean, over *all* its competitors, of the evidence that it flips on less. A mean
of e-processes is one too, so it does not matter which competitor happens to lead; a test against the leader alone, who
leads on these very prompts by luck too, would prune more than alpha says. A competitor counts only if it has seen at
least as many prompts (irace's rule: Lopez-Ibanez et al. 2016, doi:10.1016/j.orp.2016.09.002) and is within the cap;
any other enters the mean with 0. The guarantee is for prompts sampled at random and a fixed set of arms: contexts
proposed because of earlier results on the same prompts are fitted to them a little, which only the confirm split shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from flipsearch.core.measurements import Measurement, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context
from flipsearch.core.studies import OperatorGain, Trial, TrialState
from flipsearch.measuring.measure import has_failed, measure, within_caps
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Arm, KnownAnswers, Rung, SplitBaseline, counts, make_rungs
from flipsearch.searching.plan import Budget, mean_length
from flipsearch.searching.proposals import Proposals
from flipsearch.searching.setup import SearchSetup
from flipsearch.searching.surrogate import Array, Surrogate
from flipsearch.statistics.intervals import e_value

LEAST_SHOWN = 0.01
"""A smaller chance is shown as "below 1%"."""
SCORED_PROMPTS = 16
"""Harmful prompts whose known answers are scored, with benign ones as in the first rung."""
BEST_OF_SAMPLE = 3
"""In a sample whose best arms have seen all prompts, the next one is promoted, down to this place."""
FIRST_GENERATION = 2
"""Cohorts that the first one counts for: nothing is known yet, and all that comes is bred from it."""
LIKELY_ABLE = 0.5
"""An arm on its way to the last prompts is dropped where it is less likely than this to be within the caps."""
PROMOTED = 0.5
"""Arms that are promoted by one rung, for each context that a generation adds."""
EVEN = 0.5
"""Of the prompts that exactly one of two equally good arms flips, the share that a given one of them flips."""

OnRung = Callable[[str, Callable[[], list[Trial]]], None]
"""Is called after each rung with its name, and with what returns all trials so far."""


@dataclass(frozen=True, slots=True)
class SearchedArms:
    """The outcome of a search over arms."""

    trials: list[Trial]
    notes: list[str]
    operators: tuple[OperatorGain, ...]
    """() where no operator was used."""


def search_arms(
    setup: SearchSetup,
    runner: Runner,
    base: SplitBaseline,
    first_number: int,
    budget: Budget | None = None,
    on_rung: OnRung | None = None,
) -> SearchedArms:
    """Propose and race contexts until their number or the budget is spent; trials count from `first_number`."""
    search = _Search(setup, runner, base, first_number, budget or Budget(setup), on_rung)
    search.explore()
    search.finish()
    trials = []
    for arm, trial in zip(search.race.arms, search.trials(), strict=True):
        trial = replace(trial, state="stopped") if trial.state == "running" else trial
        search.proposals.report_outcome(arm)
        runner.emit(
            "trial",
            context_id=arm.context.context_id,
            template=arm.context.template,
            placement=arm.context.placement,
            params=dict(arm.context.params),
            operator=arm.context.operator,
            state=trial.state,
            rung=arm.rung + 1,
            flip=counts(arm.search.flip_rate),
            over_refusal=counts(arm.search.over_refusal_rate),
        )
        trials.append(trial)
    num = len(trials)
    notes = [*search.proposals.notes(num), *search.surrogate.notes(), *search.early_stopping_notes()]
    notes += search.budget.notes(num)
    return SearchedArms(trials, notes, search.proposals.breeder.gains.rows())


class _Search:
    def __init__(
        self,
        setup: SearchSetup,
        runner: Runner,
        base: SplitBaseline,
        first_number: int,
        budget: Budget,
        on_rung: OnRung | None,
    ) -> None:
        config = setup.config
        rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
        prefix_scores = KnownAnswers(
            runner, base, base.to_flip(make_rungs(base.num_unsafe, base.num_benign, SCORED_PROMPTS)[0])
        )
        self.runner, self.base, self.config, self.budget = runner, base, config, budget
        self.race = Race(runner, base, rungs, base.highest_refusals(config.refusal_cap()), config.alpha)
        self.surrogate = Surrogate(base, prefix_scores, config.refusal_cap(), config.seed, config.max_contraction)
        tokens_at_first = mean_length(runner, base) * base.num_answered(rungs[0]) * config.samples
        self.proposals = Proposals(setup, runner, base, self.surrogate, tokens_at_first)
        self.first_number, self.on_rung = first_number, on_rung

    def trials(self) -> list[Trial]:
        """Return what was measured of every arm so far."""
        count_tokens = self.runner.backend.count_tokens
        return [
            Trial(number, arm.context, "arm", arm.state, arm.rung, arm.search, None, count_tokens(arm.context.text))
            for number, arm in enumerate(self.race.arms, start=self.first_number)
        ]

    def explore(self) -> None:
        """Propose contexts and promote arms until all contexts are tried or the budget's share is spent."""
        config, first = self.config, self.race.rungs[0]
        num_generations = max(1, math.ceil(config.num_contexts / config.cohort_size) - FIRST_GENERATION + 1)
        for number in count(1):  # a budget makes generations smaller, and so more of them
            size = config.cohort_size * (FIRST_GENERATION if number == 1 else 1)
            wanted = min(size, config.num_contexts - len(self.race.arms))
            num = self.budget.num_affordable(self.runner, self.base, wanted, first)
            contexts = self.proposals.propose(num, self.race.arms) if num else []
            if not contexts:
                break
            name = f"cohort {number}/{max(num_generations, number)}"
            self._run(contexts, 0, name)
            self._learn(contexts)
            self._promote(max(1, int(PROMOTED * len(contexts))), name)

    def finish(self) -> None:
        """Promote arms until enough have seen all prompts and no other is likely to be better."""
        num, runs_on = self.config.num_finalists, True
        while self._running() and runs_on:
            finished = [arm for arm in self._of("complete") if within_caps(arm.search, self.config)]
            if len(finished) < num:
                runs_on = self._complete(num - len(finished))
            elif self._chance_of_better(finished) > self.config.alpha:
                runs_on = self._promote(1, "final", finishing=True)
            else:
                break

    def early_stopping_notes(self) -> list[str]:
        """Return how likely a stopped arm is better than the finished ones, by all that was measured."""
        stopped, finished, tolerance = self._running(), self._of("complete"), self.config.tolerance
        if not stopped:
            return []
        how_many = "1 context was" if len(stopped) == 1 else f"{len(stopped)} contexts were"
        if not finished:
            return [f"{how_many} stopped early: the budget did not carry one to the last prompts."]
        chance, num_seen = self._chance_of_better(finished), min(arm.search.flip_rate.n for arm in stopped)
        ids = [[arm.context.context_id for arm in arms] for arms in (stopped, finished)]
        self.runner.emit("stopped_early", chance_of_better=chance, tolerance=tolerance, stopped=ids[0], finished=ids[1])
        shown = f"about {chance:.0%}" if chance >= LEAST_SHOWN else f"below {LEAST_SHOWN:.0%}"
        margin = f"by more than {100 * tolerance:g} points" if tolerance else "at all"
        return [
            f"{how_many} stopped early: the chance that one of them is better than all finished "
            f"ones, {margin}, is {shown}, as estimated from {num_seen} harmful prompts or more each."
        ]

    def _run(self, contexts: Sequence[Context], rung: int, name: str) -> None:
        self.race.run(contexts, rung, name)
        if self.on_rung:
            self.on_rung(f"rung {rung + 1} of {len(self.race.rungs)}, {name}", self.trials)

    def _learn(self, contexts: Sequence[object]) -> None:
        """Count by how much the new children are better than their parents."""
        known = {arm.context.context_id: arm.search for arm in self.race.arms}
        for arm in self.race.arms[-len(contexts) :]:
            parents = [known[id] for id in arm.context.parents if id in known]
            admissible = within_caps(arm.search, self.config)
            self.proposals.breeder.gains.learn(arm.context, arm.search, parents, admissible=admissible)

    def _promote(self, num: int, name: str, *, finishing: bool = False) -> bool:
        """Promote up to `num` of the likely best arms by one rung; False if none can be."""
        if not (running := self._running()):
            return False
        worth = self.surrogate.sample([*running, *self._of("complete")]).worth
        choose = most_often_best if finishing else likely_best
        promoted = [running[index] for index in choose(worth, len(running), num)]
        rungs = [self.race.rungs[-1 if finishing else arm.rung + 1] for arm in promoted]
        promoted = self.budget.affordable(self.runner, self.base, promoted, rungs, finishing=finishing)
        for rung in sorted({arm.rung + 1 for arm in promoted}):
            self._run([arm.context for arm in promoted if arm.rung + 1 == rung], rung, name)
        return bool(promoted)

    def _complete(self, num: int) -> bool:
        """Run the `num` arms that are expected to be worth most through all rungs left; False if none can.

        Chosen anew at each rung, the last tokens would carry many that are alike a part of the way and none to the end.
        One that is seen to break a cap on the way is left, and the next call chooses another.
        """
        running = self._running()
        worth = self._worth_of(running).mean(axis=0)
        best = [running[index] for index in np.argsort(-worth, kind="stable")[:num]]
        last = [self.race.rungs[-1]] * len(best)
        best = self.budget.affordable(self.runner, self.base, best, last, finishing=True)
        ids = {arm.context.context_id for arm in best}
        for rung in range(1, len(self.race.rungs)):
            left = [arm for arm in self._running() if arm.context.context_id in ids and arm.rung == rung - 1]
            if left:
                self._run([arm.context for arm in left], rung, "final")
                running = self._running()
                able = (self._worth_of(running) > 0).mean(axis=0) >= LIKELY_ABLE
                ids -= {arm.context.context_id for arm, is_able in zip(running, able, strict=True) if not is_able}
        return bool(best)

    def _worth_of(self, running: Sequence[Arm]) -> Array:
        """Samples (NUM_SAMPLES, arms) of what the running arms are worth."""
        if not running:
            return np.empty((1, 0))
        return self.surrogate.sample([*running, *self._of("complete")]).worth[:, : len(running)]

    def _chance_of_better(self, finished: Sequence[Arm]) -> float:
        """The probability that an arm that did not see all prompts is better than all of `finished`."""
        running = self._running()
        if not (running and finished):
            return 1.0
        # The model is linear: it knows no highest rate.
        worth = self.surrogate.sample([*running, *finished]).worth.clip(max=1.0)
        best = [part.max(axis=1) for part in (worth[:, : len(running)], worth[:, len(running) :])]
        return float((best[0] > best[1] + self.config.tolerance).mean())

    def _running(self) -> list[Arm]:
        return self._of("running")

    def _of(self, state: str) -> list[Arm]:
        return [arm for arm in self.race.arms if arm.state == state]


def likely_best(worth: Array, num_running: int, num: int) -> list[int]:
    """Return up to `num` of the first `num_running` columns, each from a sample (row) of its own.

    It is the best there, or second or third to those that do not run any more.
    """
    chosen: dict[int, None] = {}
    for sample in worth:
        if len(chosen) == num:
            break
        best = [int(index) for index in np.argsort(-sample, kind="stable")[:BEST_OF_SAMPLE] if index < num_running]
        chosen |= dict.fromkeys(best[:1])
    return list(chosen)


def most_often_best(worth: Array, num_running: int, num: int) -> list[int]:
    """Return the `num` of the first `num_running` columns that are the best in most samples; ties by their mean."""
    wins = np.bincount(worth.argmax(axis=1), minlength=worth.shape[1])[:num_running]
    return [int(index) for index in np.lexsort((-worth.mean(axis=0)[:num_running], -wins))[:num]]


class Race:
    """All arms of a search, in order of entry, and what they are measured on.

    `cap` is the highest over-refusal rate, `alpha` the highest probability that the best arm within it is pruned.
    """

    def __init__(self, runner: Runner, base: SplitBaseline, rungs: Sequence[Rung], cap: float, alpha: float) -> None:
        self.runner, self.base, self.rungs, self.cap, self.alpha = runner, base, rungs, cap, alpha
        self._usual = base.usual_unscored
        self._arms: dict[str, Arm] = {}

    @property
    def arms(self) -> list[Arm]:
        """Every arm that finished a rung."""
        return list(self._arms.values())

    def run(self, running: Sequence[Context], index: int, name: str) -> None:
        """Measure contexts on the prompts of a rung, in one call of the backend, and prune; `name` is shown."""
        runner, base, is_last = self.runner, self.base, index == len(self.rungs) - 1
        runner.enter(Phase.RACE, f"{name}, rung {index + 1}/{len(self.rungs)}")
        prompts = base.to_flip(self.rungs[index])
        runner.emit("rung", cohort=name, rung=index + 1, num_running=len(running), num_prompts=len(prompts))
        measured = measure(runner, running, prompts, base.outcomes, "search")
        ids = {context.context_id for context in running}
        others = [arm.search for id, arm in self._arms.items() if id not in ids and arm.state != "failed"]
        scored = [measurement for measurement in measured if not has_failed(measurement, self._usual)]
        pruned = iter(prune(scored, others, self.cap, self.alpha) if not is_last else [None] * len(scored))
        for context, measurement in zip(running, measured, strict=True):
            state: TrialState = "complete" if is_last else "running"
            if has_failed(measurement, self._usual):
                state = "failed"
            elif (evidence := next(pruned)) is not None:
                state = "pruned"
                runner.emit("pruned", context_id=context.context_id, rung=index + 1, evidence=evidence)
            self._arms[context.context_id] = Arm(context, measurement, state, index)
        runner.best = self._best()

    def _best(self) -> Rate | None:
        """The highest flip rate of an arm within the cap, among those that saw most prompts."""
        able = [arm.search for arm in self.arms if arm.state in ("running", "complete")]
        able = [measured for measured in able if is_admissible(measured, self.cap) and measured.flip_rate.n]
        return max((m.flip_rate for m in able), key=lambda rate: (rate.n, rate.count), default=None)


def is_admissible(measurement: Measurement, cap: float) -> bool:
    """Return whether the over-refusal rate is within the cap; a rate that could not be measured breaks no cap."""
    return (measurement.over_refusal_rate.value or 0.0) <= cap


def prune(arms: Sequence[Measurement], others: Sequence[Measurement], cap: float, alpha: float) -> list[float | None]:
    """Return for each arm the e-value (4 digits) that rules it out, 2 / alpha or more; None for an arm that stays.

    All `arms` saw the same prompts; `others` are those of earlier cohorts and those that this one lost. Each is a
    competitor of each other. The e-value is the greater of two: the arm flips less than they do, or breaks the cap.
    """
    if not arms:
        return []
    refusals = [arm.over_refusal_rate for arm in arms]
    breaks_cap = e_value([rate.count for rate in refusals], [rate.n for rate in refusals], cap)
    evidence = np.maximum(loss_evidence(arms, others, cap), breaks_cap)
    return [float(f"{value:.4g}") if value >= 2 / alpha else None for value in evidence]


def loss_evidence(arms: Sequence[Measurement], others: Sequence[Measurement], cap: float) -> Array:
    """Return for each arm the mean e-value, over its competitors, that it flips less than they do; 1 without any."""
    num_competitors = len(arms) + len(others) - 1
    if num_competitors <= 0:
        return np.ones(len(arms))
    outcomes = np.stack([_outcomes(arm) for arm in arms])
    able = [arm for arm in others if len(arm.flips) >= len(arms[0].flips) and is_admissible(arm, cap)]
    competitors = np.stack([*outcomes, *(_outcomes(arm)[: outcomes.shape[1]] for arm in able)])
    losses = (outcomes == 0).astype(float) @ (competitors == 1).T.astype(float)
    wins = (outcomes == 1).astype(float) @ (competitors == 0).T.astype(float)
    evidence = e_value(losses, losses + wins, EVEN)
    counts = np.array([is_admissible(arm, cap) for arm in arms] + [True] * len(able), dtype=float)
    weights = np.tile(counts, (len(arms), 1))
    np.fill_diagonal(weights, 0.0)
    mean: Array = (evidence * weights).sum(axis=1) / num_competitors
    return mean


def _outcomes(measurement: Measurement) -> Array:
    """1 for a flip, 0 for none, nan where a judgement failed; one per harmful prompt in nested order."""
    decided = [flip.counts_as_flip for flip in measurement.flips if flip.kind == "harmful"]
    return np.array([float("nan") if flips is None else float(flips) for flips in decided])
