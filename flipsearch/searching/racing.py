"""How long a context is tried: rungs of prompts, and which arms are cut after a rung.

All arms see the same prompts in the same nested order. This module decides and measures nothing: a sequential test can
take the place of `is_hopeless` without a change elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flipsearch.records import Measurement

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


def is_hopeless(arm: Measurement, rivals: Iterable[Measurement], cap: float) -> bool:
    """Return whether an arm is to be cut.

    It is when its over-refusal lies above the cap, or its flip rate below that of an admissible rival that has seen at
    least as many prompts, each by more than their Wilson intervals.
    """
    if arm.over_refusal_rate.low > cap:
        return True
    bars = (r.flip_rate.low for r in rivals if len(r.flips) >= len(arm.flips) and is_admissible(r, cap))
    return arm.flip_rate.high < max(bars, default=0.0)


def shrunken(measurement: Measurement, prior: float, strength: float = 4.0) -> float:
    """Return the posterior mean of the flip rate under a Beta prior with mean `prior`, worth `strength` prompts.

    An arm cut early has a rate of few prompts; shrinking keeps it from looking better or worse than it can be known.
    """
    rate = measurement.flip_rate
    return (rate.count + strength * prior) / (rate.n + strength)


def pooled_flip_rate(measurements: Iterable[Measurement]) -> float:
    """Return the flip rate over all arms together, 0.5 if nothing was scored."""
    rates = [measurement.flip_rate for measurement in measurements]
    num_pairs = sum(rate.n for rate in rates)
    return sum(rate.count for rate in rates) / num_pairs if num_pairs else 0.5
