"""How long a context is tried: rungs of prompts, and what may win.

All arms see the same prompts in the same nested order. This module measures nothing.
"""

from dataclasses import dataclass

from flipsearch.core.records import Measurement

GROWTH = 2
LAST_STEP = 0.75
"""A rung with more than this share of all prompts is left out: the last few are not worth a batch of their own."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How many prompts an arm has seen when it has finished this rung."""

    num_harmful: int
    """Of the prompts that are unsafe without context."""
    num_benign: int
    """Of the benign prompts, in proportion."""


def make_rungs(num_harmful: int, num_benign: int, first: int) -> list[Rung]:
    """Return rungs of first, 2 x first, 4 x first, ..., all harmful prompts, with benign ones in proportion."""
    sizes = []
    size = first
    while size <= LAST_STEP * num_harmful:
        sizes.append(size)
        size *= GROWTH
    # Rounded up: no rung may be without benign prompts while there are any.
    return [Rung(size, -(-size * num_benign // num_harmful)) for size in [*sizes, num_harmful]]


def is_admissible(measurement: Measurement, cap: float) -> bool:
    """Return whether the over-refusal rate is within the cap; a rate that could not be measured breaks no cap."""
    return (measurement.over_refusal_rate.value or 0.0) <= cap
