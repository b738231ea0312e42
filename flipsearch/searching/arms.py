"""The search itself: cohorts of contexts are proposed, raced over rungs of prompts, and learned from.

Cohorts explore: they race over the rungs up to EXPLORED_PROMPTS of the prompts, or over the first alone under a token
budget, while its exploring share lasts. Then the most promising of all arms run on: as many as it takes that no other
is likely to be better by more than the tolerance (searching.early_stopping), and as the budget carries to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from flipsearch.core.records import Measurement
from flipsearch.core.studies import OperatorGain, Trial, TrialState
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Rung, SplitBaseline, counts, make_rungs
from flipsearch.searching.budget import EXPLORED_PROMPTS, MANY_FINALISTS, Budget
from flipsearch.searching.early_stopping import Estimates, num_to_promote
from flipsearch.searching.proposals import Proposals
from flipsearch.searching.race import Arm, Race, is_admissible
from flipsearch.searching.screening import Screen
from flipsearch.searching.setup import SearchSetup

LEAST_SHOWN = 0.01
"""A smaller chance is shown as "below 1%"."""
SCREEN_PROMPTS = 16
"""Harmful prompts that contexts are screened on, with benign ones in proportion."""


@dataclass(frozen=True, slots=True)
class SearchedArms:
    """What a search over arms comes to."""

    trials: list[Trial]
    notes: list[str]
    operators: tuple[OperatorGain, ...]
    """() where no operator was used."""


def search_arms(
    setup: SearchSetup, runner: Runner, base: SplitBaseline, first_number: int, budget: Budget | None = None
) -> SearchedArms:
    """Propose and race contexts until their number or the budget is spent; trials count from `first_number`."""
    search = _Search(setup, runner, base, budget or Budget(setup))
    search.explore()
    search.finish()
    trials = []
    for number, arm in enumerate(search.race.arms, start=first_number):
        state: TrialState = "stopped" if arm.state == "running" else arm.state
        runner.emit(
            "trial",
            context_id=arm.context.context_id,
            template=arm.context.template,
            placement=arm.context.placement,
            params=dict(arm.context.params),
            operator=arm.context.operator,
            state=state,
            rung=arm.rung + 1,
            flip=counts(arm.search.flip_rate),
            over_refusal=counts(arm.search.over_refusal_rate),
        )
        num_tokens = runner.backend.count_tokens(arm.context.text)
        trials.append(Trial(number, arm.context, "arm", state, arm.rung, arm.search, num_context_tokens=num_tokens))
    num = len(trials)
    notes = [*search.proposals.notes(num), *search.screen.notes(), *search.early_stopping_notes()]
    notes += search.budget.notes(num)
    return SearchedArms(trials, notes, search.proposals.breeder.gains.rows())


class _Search:
    def __init__(self, setup: SearchSetup, runner: Runner, base: SplitBaseline, budget: Budget) -> None:
        config = setup.config
        rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
        first_of_screen = make_rungs(base.num_unsafe, base.num_benign, SCREEN_PROMPTS)[0]
        self.runner, self.base, self.config, self.budget = runner, base, config, budget
        self.cap = base.highest_refusals(config.refusal_cap())
        self.race = Race(runner, base, rungs, self.cap, config.alpha)
        self.screen = Screen(runner, base, base.to_flip(first_of_screen))
        self.proposals = Proposals(setup, runner, base, self.screen)
        self.prompts = {prompt.prompt_id: prompt for prompt in base.prompts}
        exploring = [rung for rung in rungs if rung.num_harmful <= EXPLORED_PROMPTS * rungs[-1].num_harmful]
        self.num_exploring = 1 if config.budget_tokens is not None else max(1, len(exploring))

    def explore(self) -> None:
        """Propose and race cohorts until all contexts are tried or the budget's share is spent."""
        config = self.config
        num_cohorts = -(-config.num_contexts // config.cohort_size)
        for number in count(1):  # a budget makes cohorts smaller, and so more of them
            wanted = min(config.cohort_size, config.num_contexts - len(self.race.arms))
            lost_tokens = self.screen.lost_tokens(config.screen)
            num = self.budget.num_affordable(self.runner, self.base, wanted, self.race.rungs[0], lost_tokens)
            elite = self._estimates().elite(self.race.arms, self.prompts)
            contexts = self.proposals.ask(num, elite) if num else []
            if not contexts:
                break
            cohort = number, max(num_cohorts, number)
            self._learn(self.race.run(contexts, range(self.num_exploring), cohort))

    def finish(self) -> None:
        """Race the most promising arms to the end; the next ones too while none that finished is within the cap."""
        rungs = range(self.num_exploring, len(self.race.rungs))
        while rungs and not self._finished():
            running = self._running()
            self.race.run([arm.context for arm in running], rungs, promote=self._promote)
            if len(self._running()) == len(running):  # nothing is left, or affordable
                break

    def early_stopping_notes(self) -> list[str]:
        """Return how likely a stopped arm is better than the finished ones, by all that was measured."""
        stopped, finished, tolerance = self._running(), self._finished(), self.config.tolerance
        if not stopped:
            return []
        if not finished:
            return [f"{len(stopped)} contexts were stopped early: the budget did not carry one to the last prompts."]
        estimates, num_seen = self._estimates(), min(arm.search.flip_rate.n for arm in stopped)
        best_finished, best_stopped = (estimates.utilities(arms).max(axis=0) for arms in (finished, stopped))
        chance = float((best_stopped > best_finished + tolerance).mean())
        shown = f"about {chance:.0%}" if chance >= LEAST_SHOWN else f"below {LEAST_SHOWN:.0%}"
        margin = f"by more than {100 * tolerance:g} points" if tolerance else "at all"
        return [
            f"{len(stopped)} contexts were stopped early: the chance that one of them is better than all finished "
            f"ones, {margin}, is {shown}, as estimated from {num_seen} harmful prompts or more each."
        ]

    def _learn(self, raced: Sequence[Arm]) -> None:
        """Give the results of a cohort to the screen, the proposer and the breeder."""
        if self.config.screen > 1:
            self.screen.learn([(arm.context, arm.search) for arm in raced if arm.state != "failed"])
        known: dict[str, Measurement] = {arm.context.context_id: arm.search for arm in self.race.arms}
        estimates, cap = self._estimates(), self.cap
        for arm in raced:
            refusals = arm.search.over_refusal_rate.value or 0.0
            self.proposals.proposer.tell(arm.context, estimates.flip_rate(arm), violation=refusals - cap)
            parents = [known[id] for id in arm.context.parents if id in known]
            admissible = is_admissible(arm.search, cap)
            self.proposals.breeder.learn(arm.context, arm.search, parents, admissible=admissible)

    def _promote(self, arms: Sequence[Arm], rung: Rung) -> Sequence[Arm]:
        """Return the arms that run `rung`, the others being stopped early."""
        estimates, config = self._estimates(), self.config
        ranked, ids = estimates.by_promise(arms), {arm.context.context_id for arm in arms}
        stopped = [arm for arm in self._running() if arm.context.context_id not in ids]
        utilities = estimates.utilities([*ranked, *stopped])
        least, size = MANY_FINALISTS * config.num_finalists, len(ranked)
        num = num_to_promote(utilities[:size], utilities[size:], config.alpha, config.tolerance, least)
        return ranked[: self.budget.num_finishing(self.runner, self.base, len(arms[0].search.flips), rung, num)]

    def _running(self) -> list[Arm]:
        return [arm for arm in self.race.arms if arm.state == "running"]

    def _finished(self) -> list[Arm]:
        """The arms that saw all prompts and may win."""
        return [arm for arm in self._estimates().ranked(self.race.arms) if arm.state == "complete"]

    def _estimates(self) -> Estimates:
        return Estimates(self.race.arms, self.screen, self.cap)
