"""The search itself: cohorts of contexts are proposed, raced over rungs of prompts, and told to the proposers.

Cohorts explore: they race over the rungs up to EXPLORED_PROMPTS of the prompts, or over the first alone under a token
budget, while its exploring share lasts. Then the most promising of all arms run on: as many as it takes that no other
is likely to be better by more than the tolerance (searching.holding), and as the budget carries to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from flipsearch.core.records import Measurement
from flipsearch.core.studies import OperatorCredit, Trial, TrialState
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.budget import EXPLORED_PROMPTS, MANY_FINALISTS, Budget
from flipsearch.searching.holding import Estimates, chance_missed, num_kept
from flipsearch.searching.proposals import Proposals
from flipsearch.searching.race import Arm, Bar, Race
from flipsearch.searching.report import log_trial
from flipsearch.searching.rungs import Rung, is_admissible, make_rungs
from flipsearch.searching.screening import Screen
from flipsearch.searching.setup import SearchSetup

LEAST_SHOWN = 0.01
"""A chance below this is not told more closely."""
SCREEN_PROMPTS = 16
"""Harmful prompts that the screen looks at, with benign ones in proportion."""


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
    plan: SearchSetup, runner: Runner, base: SplitBaseline, first_number: int, budget: Budget | None = None
) -> Searched:
    """Search; `first_number` is the first free trial number."""
    search = _Search(plan, runner, base, budget or Budget(plan))
    search.explore()
    search.finish()
    arms = search.race.arms
    for arm in arms:
        log_trial(runner, arm.context, _state(arm), arm.rung + 1, arm.search)
    trials = [_trial(runner, arm, first_number + index) for index, arm in enumerate(arms)]
    return Searched(trials, search.notes(), search.proposals.credit())


class _Search:
    def __init__(self, plan: SearchSetup, runner: Runner, base: SplitBaseline, budget: Budget) -> None:
        config = plan.config
        rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
        self.runner, self.base, self.config, self.budget = runner, base, config, budget
        self.race = Race(runner, base, rungs, Bar(config.max_over_refusal, config.alpha))
        self.screen = Screen(
            runner, base, base.to_flip(make_rungs(base.num_unsafe, base.num_benign, SCREEN_PROMPTS)[0])
        )
        self.proposals = Proposals(plan, runner, base, self.screen)
        self.prompts = {prompt.prompt_id: prompt for prompt in base.prompts}
        self.num_first = 1 if budget.counts_tokens else _num_exploring(rungs)

    def explore(self) -> None:
        """Propose and race cohorts until all contexts are tried or the budget's share is spent."""
        config = self.config
        num_cohorts = -(-config.num_contexts // config.cohort_size)
        for cohort in count():  # a budget makes cohorts smaller, and so more of them
            left = config.num_contexts - len(self.race.arms)
            wanted, lost = min(config.cohort_size, left), self.screen.lost_tokens(config.screen)
            num = self.budget.room(self.runner, self.base, wanted, self.race.rungs[0], lost)
            estimates = self._estimates()
            contexts = self.proposals.ask(num, estimates.elite(self.race.arms, self.prompts)) if num else []
            if not contexts:
                break
            label = f"cohort {cohort + 1}/{max(num_cohorts, cohort + 1)}"
            self._learn(self.race.run(contexts, range(self.num_first), label))

    def finish(self) -> None:
        """Race the most promising arms to the end; the next ones too while none that finished is within the cap."""
        rungs = range(self.num_first, len(self.race.rungs))
        while rungs and not self._finished():
            running = self._running()
            self.race.run([arm.context for arm in running], rungs, "final", self._kept)
            if len(self._running()) == len(running):  # nothing is left, or affordable
                break

    def notes(self) -> list[str]:
        """Return what the reader must know."""
        num_arms = len(self.race.arms)
        return self.proposals.notes(num_arms) + self.screen.notes() + self._holding() + self.budget.notes(num_arms)

    def _running(self) -> list[Arm]:
        return [arm for arm in self.race.arms if arm.state == "running"]

    def _finished(self) -> list[Arm]:
        """The arms that may win."""
        return [arm for arm in self._estimates().ranked(self.race.arms) if arm.state == "complete"]

    def _holding(self) -> list[str]:
        """What is known of the arms that were held back, from all that was measured."""
        held, finished, tolerance = self._running(), self._finished(), self.config.tolerance
        if not held:
            return []
        said = f"{len(held)} contexts were held back from the last rungs"
        if not finished:
            return [f"{said}, for want of tokens."]
        estimates, num_seen = self._estimates(), min(arm.search.flip_rate.n for arm in held)
        chance = chance_missed(estimates.worths(finished), estimates.worths(held), tolerance)
        shown = f"about {chance:.0%}" if chance >= LEAST_SHOWN else f"below {LEAST_SHOWN:.0%}"
        by = f"by more than {100 * tolerance:g} points" if tolerance else "at all"
        return [
            f"{said}: the chance that one of them is better than all finished ones, {by}, is {shown}, "
            f"as far as {num_seen} harmful prompts or more tell."
        ]

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

    def _kept(self, arms: Sequence[Arm], rung: Rung) -> Sequence[Arm]:
        estimates, config = self._estimates(), self.config
        ranked, ids = estimates.by_promise(arms), {arm.context.context_id for arm in arms}
        held = [arm for arm in self.race.arms if arm.state == "running" and arm.context.context_id not in ids]
        worths = estimates.worths([*ranked, *held])
        least, size = MANY_FINALISTS * config.num_finalists, len(ranked)
        num = num_kept(worths[:size], worths[size:], config.alpha, config.tolerance, least)
        return ranked[: self.budget.finishers(self.runner, self.base, len(arms[0].search.flips), rung, num)]

    def _estimates(self) -> Estimates:
        return Estimates(self.race.arms, self.screen, self.config.max_over_refusal)


def _state(arm: Arm) -> TrialState:
    return "stopped" if arm.state == "running" else arm.state


def _num_exploring(rungs: Sequence[Rung]) -> int:
    return max(1, sum(rung.num_harmful <= EXPLORED_PROMPTS * rungs[-1].num_harmful for rung in rungs))


def _trial(runner: Runner, arm: Arm, number: int) -> Trial:
    num_tokens = runner.backend.count_tokens(arm.context.text)
    return Trial(number, arm.context, "arm", _state(arm), arm.rung, arm.search, num_context_tokens=num_tokens)
