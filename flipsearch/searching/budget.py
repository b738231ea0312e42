"""How much a search may cost: completion tokens of the study, wall time of the launch.

Of the tokens, those of the confirm split are set aside at the mean length of the answers so far (or of those without
context, if these are longer). Of the rest, what as many arms as there are finalists need to see all prompts is kept for
the end; the others go to generations of new contexts and the promotions in them. So a study stays within its tokens
unless later answers are longer on average; nothing is cut off to enforce it. The baseline and the placebos before the
search are always measured.

What counts is what the study rests on, whenever it was generated: run again, it ends where it ended. Scoring known
answers generates nothing and costs nothing. A backend that does not report its tokens spends none. Time is counted for
this launch alone, so that a later one continues; it is checked before each cohort, and the search stops when the rest
would be needed for the confirm split at the speed so far.
"""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from flipsearch.core.errors import StudyError
from flipsearch.core.records import num_answers
from flipsearch.measuring.runner import Runner
from flipsearch.searching import after
from flipsearch.searching.baseline import Rung, SplitBaseline
from flipsearch.searching.race import Arm
from flipsearch.searching.setup import SearchSetup

MOST_KEPT = 0.5
"""Of the tokens that are left for the race after the baseline, the share that is kept for its end at most."""
NUM_COHORTS, MIN_COHORT = 10, 4
"""Exploring takes at least so many generations, of at least so many contexts: the later ones learn from the first."""


class Budget:
    """Decides how many more contexts can be afforded; the clock starts when it is made.

    Raises StudyError if the tokens cannot hold the baseline, at one token or more per answer.
    """

    def __init__(self, setup: SearchSetup, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._setup = setup.config, setup
        self._clock, self._start = clock, clock()
        self._spent = self._reserved = ""
        self._tokens_at_first: float | None = None
        num_tokens, num_base = setup.config.budget_tokens, num_answers(setup.search) * setup.config.samples
        if num_tokens is not None and num_tokens < num_base:
            raise StudyError(
                f"--budget-tokens is {num_tokens:,} and cannot hold the baseline, {num_base:,} answers without "
                "context; give a larger budget (flipsearch plan shows what a search takes), or fewer --max-prompts."
            )

    def num_affordable(self, runner: Runner, base: SplitBaseline, num: int, rung: Rung) -> int:
        """Return how many of `num` contexts may be proposed next, to be raced over their first `rung`; 0 is the end."""
        if num and self._config.budget_tokens is not None:
            num = min(num, self._next_cohort(runner, base, rung))
            self._spent = "" if num else f"token budget of {self._config.budget_tokens:,}"
        if num and self._config.time_s is not None:
            passed = self._clock() - self._start
            time_per_answer = passed / max(1, runner.num_generated_tokens) * _mean_length(runner, base)
            num_rollouts = self._config.num_finalists * self._num_rollouts(base) + reserved_rollouts(self._setup, base)
            needed = passed + time_per_answer * num_rollouts
            if needed >= self._config.time_s:
                self._spent, num = f"time of {self._config.time_s:g} s", 0
                self._reserved = f" {passed:,.0f} s had passed, and what comes after needs {needed - passed:,.0f} s."
        return num

    def affordable(
        self, runner: Runner, base: SplitBaseline, arms: Sequence[Arm], rungs: Sequence[Rung], *, finishing: bool
    ) -> list[Arm]:
        """Return the first of `arms` that may run on, each up to its rung; when finishing, out of all that is left."""
        if self._config.budget_tokens is None:
            return list(arms)
        length = _mean_length(runner, base)
        left = self._tokens_left(runner, base) if finishing else self._left_to_explore(runner, base)
        seen = [sum(len(flip.rollout_ids) for flip in arm.search.flips) for arm in arms]
        to_see = [self._num_rollouts(base, rung) for rung in rungs]
        costs = accumulate(length * (most - num) for most, num in zip(to_see, seen, strict=True))
        affordable = [arm for arm, cost in zip(arms, costs, strict=True) if cost <= left]
        if finishing and len(affordable) < len(arms):
            self._spent = self._spent or f"token budget of {self._config.budget_tokens:,}"
        return affordable

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of a search that its budget ended after `num_arms` contexts."""
        if not self._spent:
            return []
        spent = "is spent" if num_arms else "holds no context beside the baseline, the finalists and the confirm split"
        todo = "" if num_arms else " Give more, or fewer --max-prompts or --num-finalists."
        tried = f"{num_arms} of {self._config.num_contexts} contexts were tried."
        return [f"The {self._spent} {spent}: {tried}{self._reserved}{todo}"]

    def _next_cohort(self, runner: Runner, base: SplitBaseline, rung: Rung) -> int:
        """The contexts that the exploring share of the tokens still affords, a part of them at a time."""
        each = _mean_length(runner, base) * self._num_rollouts(base, rung)
        left = self._left_to_explore(runner, base)
        if each == 0:
            return self._config.num_contexts
        generation = max(MIN_COHORT, int((self._tokens_at_first or 0) / each / NUM_COHORTS))
        return max(0, min(generation, int(left / each)))

    def _left_to_explore(self, runner: Runner, base: SplitBaseline) -> float:
        """The tokens that first rungs and promotions may still take: the finalists must be able to see all prompts."""
        left = self._tokens_left(runner, base)
        self._tokens_at_first = left if self._tokens_at_first is None else self._tokens_at_first
        whole = _mean_length(runner, base) * self._num_rollouts(base)
        return left - max(whole, min(MOST_KEPT * self._tokens_at_first, self._config.num_finalists * whole))

    def _num_rollouts(self, base: SplitBaseline, rung: Rung | None = None) -> int:
        """Rollouts of one context up to a rung; None takes all."""
        return base.num_answered(rung) * self._config.samples

    def _tokens_left(self, runner: Runner, base: SplitBaseline) -> float:
        """What the race may still spend."""
        reserved = _mean_length(runner, base) * reserved_rollouts(self._setup, base)
        return (self._config.budget_tokens or 0) - runner.num_tokens - reserved


def reserved_rollouts(setup: SearchSetup, base: SplitBaseline) -> int:
    """Return the rollouts that come after the search: the confirm split's, and those of the stages after it."""
    num_confirmed = 1 + setup.config.num_finalists + len(setup.placebos)
    confirmed = num_confirmed * num_answers(setup.confirm) * setup.config.samples
    return confirmed + sum(stage.cost(setup, base) or 0 for stage in after.STAGES)


def _mean_length(runner: Runner, base: SplitBaseline) -> float:
    """Mean tokens of an answer: of all so far, or of those without context, whichever are longer."""
    so_far = [judged.num_tokens for judged in runner.judged.values()]
    without_context = [judged.num_tokens for samples in base.outcomes.values() for judged in samples.judged]
    return max(sum(lengths) / max(1, len(lengths)) for lengths in (so_far, without_context))
