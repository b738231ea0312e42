"""How much a search may cost: completion tokens of the study, wall time of the launch.

Of the tokens, those of the confirm split are set aside at the mean length of the answers so far (or of those without
context, if these are longer). Of the rest, EXPLORE_SHARE goes to first rungs, many contexts on few prompts; then as
many arms run on as can, and one at least to its end. So a study stays within its tokens unless later answers are longer
on the mean; nothing is cut off to enforce it. The baseline and the placebos before the search are always measured.

What counts is what the study rests on, whenever it was generated: run again, it ends where it ended. Scoring known
answers generates nothing and is free. A backend that does not tell its tokens spends none. Time is counted for this
launch alone, so that a later one goes on; it is looked at before each cohort, and the search stops when the rest would
be needed for the confirm split at the speed so far.
"""

import time
from collections.abc import Callable

from flipsearch.config import StudyConfig
from flipsearch.core.errors import StudyError
from flipsearch.measuring.runner import Runner
from flipsearch.searching import after
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.rungs import Rung
from flipsearch.searching.setup import SearchSetup

EXPLORE_SHARE = 0.5
"""Of the tokens that are left for the race after the baseline."""
EXPLORED_PROMPTS = 0.5
"""Share of the prompts that cohorts may see before the most promising of all arms see the others."""
MANY_FINALISTS = 2
"""Arms that are to see all prompts at least, as a multiple of the finalists."""
NUM_COHORTS, MIN_COHORT = 3, 4
"""Exploring goes in at least so many cohorts, of at least so many contexts, for the later ones learn from the first."""


class Budget:
    """Says for how many more contexts there is room; the clock starts when it is made.

    `reserve` False keeps nothing back for the confirm split. Raises StudyError if the tokens cannot hold the baseline,
    at a token or more for each answer.
    """

    def __init__(self, plan: SearchSetup, clock: Callable[[], float] = time.monotonic, *, reserve: bool = True) -> None:
        self._config, self._plan, self._reserve = plan.config, plan, reserve
        self._clock, self._start = clock, clock()
        self._spent = ""
        self._at_first: float | None = None
        _check_tokens(plan)

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited."""
        return self._config.budget_tokens is not None

    def room(self, runner: Runner, base: SplitBaseline, num: int, rung: Rung, lost_tokens: float = 0.0) -> int:
        """Return how many of `num` contexts may be proposed next, to be raced over their first `rung`; 0 is the end.

        Screening loses `lost_tokens` for each of them.
        """
        if num and self.counts_tokens:
            num = min(num, self._explorers(runner, base, rung, lost_tokens))
            self._spent = "" if num else f"token budget of {self._config.budget_tokens:,}"
        if num and self._config.time_s is not None and self._is_late(runner, base):
            self._spent, num = f"time of {self._config.time_s:g} s", 0
        return num

    def finishers(self, runner: Runner, base: SplitBaseline, num_seen: int, rung: Rung, num: int) -> int:
        """Return how many of `num` arms may run the next rung if one is to see all; they saw `num_seen` prompts."""
        if not (num and self.counts_tokens):
            return num
        length, seen = _length(runner, base), num_seen * self._config.samples
        step, whole = self._num_rollouts(base, rung) - seen, self._num_rollouts(base) - seen
        affordable = (self._left(runner, base) - length * (whole - step)) / (length * step) if length * step else num
        kept = max(0, min(num, int(affordable)))
        self._spent = self._spent or (f"token budget of {self._config.budget_tokens:,}" if kept < num else "")
        return kept

    def _explorers(self, runner: Runner, base: SplitBaseline, rung: Rung, lost_tokens: float) -> int:
        left, each = self._left(runner, base), _length(runner, base) * self._num_rollouts(base, rung) + lost_tokens
        whole = _length(runner, base) * self._num_rollouts(base)
        self._at_first = left if self._at_first is None else self._at_first
        if each == 0:
            return self._config.num_contexts
        kept = max((1 - EXPLORE_SHARE) * self._at_first, whole - each)
        cohort = max(MIN_COHORT, int((self._at_first - kept) / each / NUM_COHORTS))
        return max(0, min(cohort, int((left - kept) / each)))

    def _num_rollouts(self, base: SplitBaseline, rung: Rung | None = None) -> int:
        """Rollouts of one context up to a rung; None takes all."""
        return len(base.to_flip(rung)) * self._config.samples

    def _left(self, runner: Runner, base: SplitBaseline) -> float:
        reserved = reserved_rollouts(self._plan, base) if self._reserve else 0
        return (self._config.budget_tokens or 0) - runner.num_tokens - _length(runner, base) * reserved

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of a search that its budget ended after `num_arms` contexts."""
        if not self._spent:
            return []
        return [f"The {self._spent} is spent: {num_arms} of {self._config.num_contexts} contexts were tried."]

    def _is_late(self, runner: Runner, base: SplitBaseline) -> bool:
        passed = self._clock() - self._start
        each = passed / max(1, runner.num_generated_tokens) * _length(runner, base)
        finishing = MANY_FINALISTS * self._config.num_finalists * (1 - EXPLORED_PROMPTS) * self._num_rollouts(base)
        return passed + each * (finishing + reserved_rollouts(self._plan, base)) >= (self._config.time_s or 0.0)


def reserved_rollouts(plan: SearchSetup, base: SplitBaseline) -> int:
    """Return the rollouts that come after the search: the confirm split's, and those of the stages after it."""
    num_confirmed = 1 + plan.config.num_finalists + len(plan.placebos)
    confirmed = num_confirmed * len(plan.confirm) * plan.config.samples
    return confirmed + sum(stage.cost(plan, base) or 0 for stage in after.STAGES)


def _length(runner: Runner, base: SplitBaseline) -> float:
    """Mean tokens of an answer: of all so far, or of those without context, whichever are longer."""
    of_base = [sample.num_tokens for samples in base.outcomes.values() for sample in samples.judged]
    return max(runner.mean_length, sum(of_base) / max(1, len(of_base)))


def _check_tokens(plan: SearchSetup) -> None:
    config: StudyConfig = plan.config
    num_answers = len(plan.search) * config.samples
    if config.budget_tokens is not None and config.budget_tokens < num_answers:
        raise StudyError(
            f"budget_tokens = {config.budget_tokens:,} cannot hold the baseline, {num_answers:,} answers without "
            "context; give a larger budget (flipsearch plan shows what a search takes), or fewer --max-prompts."
        )
