"""Two contexts on the same prompts: the paired difference of their rates and its test."""

import math
from collections.abc import Sequence

from flipsearch.records import Difference, Rate
from flipsearch.statistics.intervals import wilson


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Difference:
    """Return rate(first) - rate(second) over the same n >= 1 prompts, with interval and p-value.

    Interval: Newcombe's method 10 (1998, doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C), which
    stays inside [-1, 1] and has a width without discordant pairs too. p-value: McNemar's exact test, mid-p.
    ValueError for unequal lengths or no pairs.
    """
    table = [[0, 0], [0, 0]]
    for one, other in zip(first, second, strict=True):
        table[not one][not other] += 1
    (both, only_first), (only_second, neither) = table
    low, high = newcombe(both, only_first, only_second, neither, level)
    n = len(first)
    return Difference((only_first - only_second) / n, low, high, n, mcnemar_mid_p(only_first, only_second))


def newcombe(both: int, only_first: int, only_second: int, neither: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of P(first) - P(second) from the four cells of the paired table; ValueError if all are 0."""
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("expected at least one pair, got none.")
    one, other = wilson(both + only_first, n, level), wilson(both + only_second, n, level)
    phi = _correlation(both, only_first, only_second, neither)
    difference = (only_first - only_second) / n
    (down1, up1), (down2, up2) = _arms(one), _arms(other)
    low = difference - math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = difference + math.sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    return max(-1.0, low), min(1.0, high)


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Return McNemar's exact two-sided p-value in its mid-p form; 1 without discordant pairs.

    Half of the probability of what was seen is left out, which mends the exact test's conservatism.
    Source: Fagerland, Lydersen and Laake 2013, doi:10.1186/1471-2288-13-91.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    term = tail = 1  # in units of 2**-n, exact
    for i in range(1, k + 1):
        term = term * (n - i + 1) // i
        tail += term
    if only_first == only_second:
        return 1.0 - term / (1 << n + 1)
    return (2 * tail - term) / (1 << n)


def _arms(rate: Rate) -> tuple[float, float]:
    """Distances from the value to both ends of its interval."""
    value = rate.count / rate.n
    return value - rate.low, rate.high - value


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's phi: a positive correlation is corrected for continuity, down to 0."""
    n = both + only_first + only_second + neither
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_first * only_second
    return (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(margins)
