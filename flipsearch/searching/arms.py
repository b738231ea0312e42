"""The search itself: cohorts of contexts are proposed, raced over rungs of prompts, and told to the proposers.

Without a token budget each cohort is raced to its end. Under one, cohorts run the first rung alone while the exploring
share of the budget lasts; then the most promising of all arms run on, as many as the rest of it carries to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from flipsearch.measure import Bench
from flipsearch.records import Measurement, OperatorCredit, Trial, TrialState
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.budget import Budget
from flipsearch.searching.estimates import Estimates
from flipsearch.searching.plan import Plan
from flipsearch.searching.proposals import Proposals
from flipsearch.searching.race import Arm, Bar, Race
from flipsearch.searching.racing import Rung, is_admissible, make_rungs
from flipsearch.searching.screening import Screen
from flipsearch.searching.telling import tell_trial

SCREEN_PROMPTS = 16
"""Harmful prompts that the screen reads, with benign ones in proportion."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search over arms comes to."""

    trials: list[Trial]
    """One for every context tried, in order of proposal."""
    notes: list[str]
    """What the reader must know."""
    operators: tuple[OperatorCredit, ...]
    """What each operator brought; () where none was used."""


def search_arms(
    plan: Plan, bench: Bench, base: SplitBaseline, first_number: int, budget: Budget | None = None
) -> Searched:
    """Search; `first_number` is the first free trial number."""
    search = _Search(plan, bench, base, budget or Budget(plan))
    search.explore()
    search.finish()
    arms = search.race.arms
    for arm in arms:
        tell_trial(bench, arm.context, _state(arm), arm.rung + 1, arm.search)
    trials = [_trial(bench, arm, first_number + index) for index, arm in enumerate(arms)]
    return Searched(trials, search.notes(), search.proposals.credit())


class _Search:
    def __init__(self, plan: Plan, bench: Bench, base: SplitBaseline, budget: Budget) -> None:
        config = plan.config
        rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
        self.bench, self.base, self.config, self.budget = bench, base, config, budget
        self.race = Race(bench, base, rungs, Bar(config.max_over_refusal, config.alpha))
        self.screen = Screen(bench, base, base.to_flip(make_rungs(base.num_unsafe, base.num_benign, SCREEN_PROMPTS)[0]))
        self.proposals = Proposals(plan, bench, base, self.screen)
        self.prompts = {prompt.prompt_id: prompt for prompt in base.prompts}
        # With a token budget, cohorts stop after the first rung and the rest is kept for the best of them.
        self.num_first = 1 if budget.counts_tokens else len(rungs)

    def explore(self) -> None:
        """Propose and race cohorts until all contexts are tried or the budget's share is spent."""
        config = self.config
        num_cohorts = -(-config.num_contexts // config.cohort_size)
        for cohort in count():  # a budget makes cohorts smaller, and so more of them
            left = config.num_contexts - len(self.race.arms)
            num = self.budget.room(self.bench, self.base, min(config.cohort_size, left), self.race.rungs[0])
            estimates = self._estimates()
            contexts = self.proposals.ask(num, estimates.elite(self.race.arms, self.prompts)) if num else []
            if not contexts:
                break
            label = f"cohort {cohort + 1}/{max(num_cohorts, cohort + 1)}"
            self._learn(self.race.run(contexts, range(self.num_first), label))

    def finish(self) -> None:
        """Race the arms that still run to the end, under a budget the most promising ones."""
        running = [arm for arm in self._estimates().ranked(self.race.arms) if arm.state == "running"]
        rungs = range(self.num_first, len(self.race.rungs))
        if running and rungs:
            self.race.run([arm.context for arm in running], rungs, "final", self._affordable)

    def notes(self) -> list[str]:
        """Return what the reader must know."""
        num_arms = len(self.race.arms)
        return self.proposals.notes(num_arms) + self.screen.notes() + self.budget.notes(num_arms)

    def _learn(self, raced: Sequence[Arm]) -> None:
        able = [arm for arm in raced if arm.state != "failed"]
        if self.config.screen > 1:
            self.screen.learn([(arm.context, arm.search) for arm in able])
        known: dict[str, Measurement] = {arm.context.context_id: arm.search for arm in self.race.arms}
        estimates, cap = self._estimates(), self.config.max_over_refusal
        for arm in raced:
            refusals = arm.search.over_refusal_rate.value or 0.0
            self.proposals.tell(arm.context, estimates.value(arm), violation=refusals - cap)
            parents = [known[id] for id in arm.context.parents if id in known]
            self.proposals.learn(arm.context, arm.search, parents, admissible=is_admissible(arm.search, cap))

    def _affordable(self, arms: Sequence[Arm], rung: Rung) -> Sequence[Arm]:
        ranked = self._estimates().ranked(arms)
        return ranked[: self.budget.finishers(self.bench, self.base, len(arms[0].search.flips), rung, len(ranked))]

    def _estimates(self) -> Estimates:
        return Estimates(self.race.arms, self.screen, self.config.max_over_refusal)


def _state(arm: Arm) -> TrialState:
    return "cut" if arm.state == "running" else arm.state


def _trial(bench: Bench, arm: Arm, number: int) -> Trial:
    num_tokens = bench.backend.count_tokens(arm.context.text)
    return Trial(number, arm.context, "arm", _state(arm), arm.rung, arm.search, num_context_tokens=num_tokens)
