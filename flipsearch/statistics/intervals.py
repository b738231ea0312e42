"""Intervals of one fraction."""

import math
from statistics import NormalDist

from flipsearch.records import Rate


def wilson(count: int, n: int, level: float = 0.95) -> Rate:
    """Return count / n with its Wilson score interval; n = 0 gives [0, 1].

    ValueError unless 0 <= count <= n and 0 < level < 1.
    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953), without continuity correction.
    """
    if not 0 <= count <= n:
        raise ValueError(f"expected 0 <= count <= n, got count = {count}, n = {n}.")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    z = two_sided_z(level)
    share = count / n
    middle = (count + z * z / 2) / (n + z * z)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n the ends are exactly 0 and 1; rounding would leave them a hair off, on the wrong side of the value.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == n else min(1.0, middle + half)
    return Rate(count, n, low, high)


def two_sided_z(level: float) -> float:
    """Return the normal quantile that leaves (1 - level) / 2 above it, e.g. 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)
