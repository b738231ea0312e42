"""How much a search may cost: completion tokens of the study, wall time of the launch.

Of the tokens, those of the confirm split are set aside at the mean length of the answers so far (or of those without
context, if these are longer). Of the rest, EXPLORE_SHARE goes to first rungs, many contexts on few prompts; then as
many arms run on as can, and at least one to its end. So a study stays within its tokens unless later answers are longer
on average; nothing is cut off to enforce it. The baseline and the placebos before the search are always measured.

What counts is what the study rests on, whenever it was generated: run again, it ends where it ended. Scoring known
answers generates nothing and is free. A backend that does not report its tokens spends none. Time is counted for this
launch alone, so that a later one goes on; it is checked before each cohort, and the search stops when the rest would be
needed for the confirm split at the speed so far.
"""

import time
from collections.abc import Callable

from flipsearch.core.errors import StudyError
from flipsearch.measuring.runner import Runner
from flipsearch.searching import after
from flipsearch.searching.baseline import Rung, SplitBaseline
from flipsearch.searching.setup import SearchSetup

EXPLORE_SHARE = 0.5
"""Of the tokens that are left for the race after the baseline."""
EXPLORED_PROMPTS = 0.5
"""Share of the prompts that cohorts may see before the most promising of all arms see the others."""
MANY_FINALISTS = 2
"""Arms that are to see all prompts at least, as a multiple of the finalists."""
NUM_COHORTS, MIN_COHORT = 3, 4
"""Exploring takes at least so many cohorts, of at least so many contexts: the later ones learn from the first."""


class Budget:
    """Decides how many more contexts can be afforded; the clock starts when it is made.

    Raises StudyError if the tokens cannot hold the baseline, at one token or more per answer.
    """

    def __init__(self, setup: SearchSetup, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._setup = setup.config, setup
        self._clock, self._start = clock, clock()
        self._spent = ""
        self._tokens_at_first: float | None = None
        num_tokens, num_answers = setup.config.budget_tokens, len(setup.search) * setup.config.samples
        if num_tokens is not None and num_tokens < num_answers:
            raise StudyError(
                f"budget_tokens = {num_tokens:,} cannot hold the baseline, {num_answers:,} answers without context; "
                "give a larger budget (flipsearch plan shows what a search takes), or fewer --max-prompts."
            )

    def num_affordable(
        self, runner: Runner, base: SplitBaseline, num: int, rung: Rung, lost_tokens: float = 0.0
    ) -> int:
        """Return how many of `num` contexts may be proposed next, to be raced over their first `rung`; 0 is the end.

        Screening loses `lost_tokens` for each of them.
        """
        if num and self._config.budget_tokens is not None:
            num = min(num, self._next_cohort(runner, base, rung, lost_tokens))
            self._spent = "" if num else f"token budget of {self._config.budget_tokens:,}"
        if num and self._config.time_s is not None:
            passed = self._clock() - self._start
            time_per_answer = passed / max(1, runner.num_generated_tokens) * _mean_length(runner, base)
            num_finishing = MANY_FINALISTS * self._config.num_finalists * (1 - EXPLORED_PROMPTS)
            num_rollouts = num_finishing * self._num_rollouts(base) + reserved_rollouts(self._setup, base)
            if passed + time_per_answer * num_rollouts >= self._config.time_s:
                self._spent, num = f"time of {self._config.time_s:g} s", 0
        return num

    def num_finishing(self, runner: Runner, base: SplitBaseline, num_seen: int, rung: Rung, num: int) -> int:
        """Return how many of `num` arms may run the next rung if one is to see all; they saw `num_seen` prompts."""
        if not num or self._config.budget_tokens is None:
            return num
        length, seen = _mean_length(runner, base), num_seen * self._config.samples
        step, whole = self._num_rollouts(base, rung) - seen, self._num_rollouts(base) - seen
        left = self._tokens_left(runner, base)
        affordable = (left - length * (whole - step)) / (length * step) if length * step else num
        finishing = max(0, min(num, int(affordable)))
        self._spent = self._spent or (f"token budget of {self._config.budget_tokens:,}" if finishing < num else "")
        return finishing

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of a search that its budget ended after `num_arms` contexts."""
        if not self._spent:
            return []
        return [f"The {self._spent} is spent: {num_arms} of {self._config.num_contexts} contexts were tried."]

    def _next_cohort(self, runner: Runner, base: SplitBaseline, rung: Rung, lost_tokens: float) -> int:
        """The contexts that the exploring share of the tokens still affords, a third of them at most at a time."""
        left, length = self._tokens_left(runner, base), _mean_length(runner, base)
        each, whole = length * self._num_rollouts(base, rung) + lost_tokens, length * self._num_rollouts(base)
        self._tokens_at_first = left if self._tokens_at_first is None else self._tokens_at_first
        if each == 0:
            return self._config.num_contexts
        kept = max((1 - EXPLORE_SHARE) * self._tokens_at_first, whole - each)
        cohort = max(MIN_COHORT, int((self._tokens_at_first - kept) / each / NUM_COHORTS))
        return max(0, min(cohort, int((left - kept) / each)))

    def _num_rollouts(self, base: SplitBaseline, rung: Rung | None = None) -> int:
        """Rollouts of one context up to a rung; None takes all."""
        return len(base.to_flip(rung)) * self._config.samples

    def _tokens_left(self, runner: Runner, base: SplitBaseline) -> float:
        """What the race may still spend."""
        reserved = _mean_length(runner, base) * reserved_rollouts(self._setup, base)
        return (self._config.budget_tokens or 0) - runner.num_tokens - reserved


def reserved_rollouts(setup: SearchSetup, base: SplitBaseline) -> int:
    """Return the rollouts that come after the search: the confirm split's, and those of the stages after it."""
    num_confirmed = 1 + setup.config.num_finalists + len(setup.placebos)
    confirmed = num_confirmed * len(setup.confirm) * setup.config.samples
    return confirmed + sum(stage.cost(setup, base) or 0 for stage in after.STAGES)


def _mean_length(runner: Runner, base: SplitBaseline) -> float:
    """Mean tokens of an answer: of all so far, or of those without context, whichever are longer."""
    so_far = [judged.num_tokens for judged in runner.judged.values()]
    without_context = [judged.num_tokens for samples in base.outcomes.values() for judged in samples.judged]
    return max(sum(lengths) / max(1, len(lengths)) for lengths in (so_far, without_context))
