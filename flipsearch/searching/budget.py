"""How much a search may cost: completion tokens of the study, wall time of the launch.

Both are looked at before each cohort. Of the tokens, those of the confirm split are set aside at the mean length of the
answers so far (or of those without context, if these are longer), and a context is proposed only if it could be raced
to the end at that length without touching them. So a study stays within its tokens unless later answers are longer than
that on the mean; nothing is cut off to enforce it. The baseline and the placebos before the search are always measured.

What counts is what the study rests on, whenever it was generated: run again, it ends where it ended. A backend that
does not tell its tokens spends none. Time is counted for this launch alone, so that a later one goes on; the search
stops when the rest would be needed for the confirm split at the speed so far, and a cohort is raced to its end.
"""

import time
from collections.abc import Callable

from flipsearch.config import StudyConfig
from flipsearch.errors import StudyError
from flipsearch.measure import Bench
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.plan import Plan


class Budget:
    """Says for how many more contexts there is room; the clock starts when it is made.

    Raises StudyError if the tokens cannot hold the baseline, at a token or more for each prompt.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._plan = plan.config, plan
        self._clock, self._start = clock, clock()
        self._spent = ""
        _check_tokens(plan)

    def room(self, bench: Bench, base: SplitBaseline, num: int) -> int:
        """Return how many of `num` contexts may be proposed next; 0 is the end of the search."""
        if num and self._config.budget_tokens is not None:
            length = _length(bench, base)
            left = self._config.budget_tokens - bench.num_tokens - length * reserved_rollouts(self._plan, base)
            each = length * len(base.to_flip())
            num = num if each == 0 else max(0, min(num, int(left // each)))
            self._spent = "" if num else f"token budget of {self._config.budget_tokens:,}"
        if num and self._config.time_s is not None and self._is_late(bench, base):
            self._spent, num = f"time of {self._config.time_s:g} s", 0
        return num

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of a search that its budget ended after `num_arms` contexts."""
        if not self._spent:
            return []
        return [f"The {self._spent} is spent: {num_arms} of {self._config.num_contexts} contexts were tried."]

    def _is_late(self, bench: Bench, base: SplitBaseline) -> bool:
        passed = self._clock() - self._start
        each = passed / bench.num_generated if bench.num_generated else 0.0
        return passed + each * reserved_rollouts(self._plan, base) >= (self._config.time_s or 0.0)


def reserved_rollouts(plan: Plan, base: SplitBaseline) -> int:
    """Return the rollouts that come after the search: the confirm split, and the placebos matched to the winner."""
    num_confirmed = 1 + plan.config.num_finalists + len(plan.placebos)
    num_matched = sum(row.needs_winner for row in plan.placebos)
    return num_confirmed * len(plan.confirm) + num_matched * len(base.to_flip())


def _length(bench: Bench, base: SplitBaseline) -> float:
    """Mean tokens of an answer: of all so far, or of those without context, whichever are longer."""
    of_base = [outcome.num_tokens for outcome in base.outcomes.values()]
    return max(bench.num_tokens / max(1, bench.num_outcomes), sum(of_base) / max(1, len(of_base)))


def _check_tokens(plan: Plan) -> None:
    config: StudyConfig = plan.config
    if config.budget_tokens is not None and config.budget_tokens < len(plan.search):
        raise StudyError(
            f"budget_tokens = {config.budget_tokens:,} cannot hold the baseline, {len(plan.search):,} answers without "
            "context; give a larger budget (flipsearch plan shows what a search takes), or fewer --max-prompts."
        )
