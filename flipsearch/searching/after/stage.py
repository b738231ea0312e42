"""The protocol of a stage after the search, and what the search passes to it.

A stage knows neither the study it ends up in nor the other stages: it gets a `Confirmation` and returns it with its own
part added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flipsearch.core.protocols import Judge
from flipsearch.core.studies import Trial
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import Confirmation
from flipsearch.searching.setup import SearchSetup


@dataclass(frozen=True, slots=True)
class CompletedSearch:
    """What stages after the search can use."""

    setup: SearchSetup
    runner: Runner
    """With the judge that searched."""
    deciding: Runner
    """With the judge that decides on the confirm split; the same runner if that is the same judge."""
    other_judges: Sequence[Judge]
    """Judges that do not decide, each once."""
    base: SplitBaseline
    """Of the search split."""
    num_trials: int
    """Trials so far; the next one gets this number."""
    prepared: Mapping[str, Sequence[Trial]]
    """Stage -> the trials that it measured before the seal was broken."""


class Stage(Protocol):
    """A measurement after the search; subclass it to inherit what a stage does not need.

    Judges take turns in memory: only the judge whose turn it is may be used (see `after.STAGES`).
    """

    name: str
    """Unique; the plan shows the cost under it."""

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int | None:
        """Return the most rollouts that the stage takes, given the search split's baseline, or before it is known.

        None if it generates nothing of its own: then the plan has no row for it.
        """
        return None

    def prepare(self, setup: SearchSetup, runner: Runner, base: SplitBaseline) -> Sequence[Trial]:
        """Return what is measured on the search split before the seal is broken, so that it can be chosen from."""
        return ()

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Return the confirmation with this stage's results; it may have no winner."""
        ...
