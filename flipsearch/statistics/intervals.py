"""Intervals of one fraction (Wilson), of a mean of bounded values (Student), and of a weighted sum (MOVER)."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from flipsearch.core.records import Estimate, Rate

LEVEL = 0.95
EQUAL_WITHIN = 1e-9
"""Values nearer than this are equal: differences of fractions of samples differ in their last bits."""


def two_sided_z(level: float) -> float:
    """Return the normal quantile with probability (1 - level) / 2 above it, e.g. 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(count: int, n: int, level: float = LEVEL) -> Rate:
    """Return count / n with its Wilson score interval; n = 0 gives [0, 1].

    ValueError unless 0 <= count <= n and 0 < level < 1.
    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953), without continuity correction.
    """
    if not 0 <= count <= n:
        raise ValueError(f"expected 0 <= count <= n, got count = {count}, n = {n}.")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    down, up = wilson_reach(count, n, level)
    # At 0 and n the ends are exactly 0 and 1; rounding would leave them a hair off, on the wrong side of the value.
    low = 0.0 if count == 0 else max(0.0, count / n - down)
    high = 1.0 if count == n else min(1.0, count / n + up)
    return Rate(count, n, low, high)


def wilson_reach(count: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Return how far Wilson's interval reaches below and above count / n; neither need be a whole number."""
    z, share = two_sided_z(level), count / n
    middle = (count + z * z / 2) / (n + z * z)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, share - middle + half), max(0.0, middle + half - share)


def mean_interval(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Estimate:
    """Return the mean of independent values in [low, high] with Student's 95 % interval, clipped to the range.

    Equal values have no spread, and Student's interval no width. Each end is then where a share of
    1 - 0.025 ** (1 / n) of all values could lie at the far end unseen (for zeros and ones that is Clopper and Pearson's
    interval, 1934, doi:10.1093/biomet/26.4.404). No values give [low, high]. ValueError for a value out of range.

    With several samples per problem, each problem's mean is one value. For equally many samples the variance is then
    the cluster-robust one of all samples (Liang and Zeger 1986, doi:10.1093/biomet/73.1.13) times n / (n - 1), and
    Student's quantile has n - 1 degrees of freedom, as Cameron and Miller advise (2015, doi:10.3368/jhr.50.2.317).
    """
    n = len(values)
    if n == 0:
        return Estimate(None, low, high, 0)
    array = np.asarray(values, dtype=np.float64)
    if array.min() < low or array.max() > high:
        raise ValueError(f"expected values in [{low:g}, {high:g}], got {array.min():g} to {array.max():g}.")
    mean = min(max(float(array.mean()), low), high)
    if array.max() - array.min() < EQUAL_WITHIN:
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / n)
        return Estimate(mean, mean - unseen * (mean - low), mean + unseen * (high - mean), n)
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, max(low, mean - half), min(high, mean + half), n)


def paired_mean_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return mean(first) - mean(second) over the same problems, values in [0, 1], with Student's interval.

    ValueError for unequal lengths.
    """
    return mean_interval([left - right for left, right in zip(first, second, strict=True)], -1.0, 1.0)


def weighted_sum(weights: Sequence[float], parts: Sequence[Estimate], offset: float = 0.0) -> Estimate:
    """Return offset + the weighted sum of independent estimates, with its interval; n is the sum of theirs.

    The delta method with each part's variance recovered from its own interval, each side separately (MOVER: Zou, Huang
    and Zhang 2009, doi:10.1016/j.csda.2008.09.033). Where the parts' intervals are normal ones it is the delta method
    itself; where a rate is 0 or 1 it keeps a width. ValueError without parts, or for a part without a value.
    """
    if not parts:
        raise ValueError("expected at least one part, got none.")
    value, below, above = offset, 0.0, 0.0
    for weight, part in zip(weights, parts, strict=True):
        if part.value is None:
            raise ValueError("expected measured parts, got one without a value.")
        value += weight * part.value
        down, up = abs(weight) * (part.value - part.low), abs(weight) * (part.high - part.value)
        down, up = (down, up) if weight >= 0 else (up, down)
        below, above = below + down**2, above + up**2
    return Estimate(value, value - math.sqrt(below), value + math.sqrt(above), sum(part.n for part in parts))
