"""Two contexts on the same prompts: paired differences, their tests, several tests at once, and sequential evidence.

Newcombe's interval and McNemar's mid-p test for one pair of contexts; Holm's adjustment for several; e-values where
one looks after every prompt and may stop at any time.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaln, xlog1py, xlogy

from flipsearch.core.records import Difference
from flipsearch.statistics.intervals import wilson


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Difference:
    """Return rate(first) - rate(second) over the same n >= 1 prompts, with interval (Newcombe) and p-value (McNemar).

    ValueError for unequal lengths or no pairs.
    """
    table = [[0, 0], [0, 0]]
    for left, right in zip(first, second, strict=True):
        table[not left][not right] += 1
    (both, only_first), (only_second, neither) = table
    low, high = newcombe(both, only_first, only_second, neither, level)
    n = len(first)
    return Difference((only_first - only_second) / n, low, high, n, mcnemar_mid_p(only_first, only_second))


def newcombe(both: int, only_first: int, only_second: int, neither: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of P(first) - P(second) from the four cells of the paired table; ValueError if all are 0.

    It stays inside [-1, 1] and has a width without discordant pairs too.
    Source: Newcombe 1998, method 10 (doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C).
    """
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("expected at least one pair, got none.")
    first, second = wilson(both + only_first, n, level), wilson(both + only_second, n, level)
    down1, up1 = first.count / n - first.low, first.high - first.count / n
    down2, up2 = second.count / n - second.low, second.high - second.count / n
    # phi: a positive correlation is corrected for continuity, down to 0.
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    excess = both * neither - only_first * only_second
    phi = (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(margins) if margins else 0.0
    difference = (only_first - only_second) / n
    low = difference - math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = difference + math.sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    return max(-1.0, low), min(1.0, high)


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Return McNemar's exact two-sided p-value in its mid-p form; 1 without discordant pairs.

    Half of the probability of the observed table is left out, which corrects the exact test's conservatism.
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order.

    Rejecting those below alpha makes any false rejection with probability at most alpha, however the tests depend on
    each other. Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def e_value(counts: ArrayLike, totals: ArrayLike, bound: float) -> NDArray[np.float64]:
    """Return the evidence against "the rate is at most `bound`" in `counts` successes of `totals` trials, elementwise.

    Under that hypothesis an e-value exceeds 1 / alpha at any time with probability at most alpha (Ville's inequality),
    so a race may look after every rung without inflating its errors (Ramdas et al. 2023, doi:10.1214/23-STS894).

    It is the likelihood ratio of rates mixed uniformly over (bound, 1), a beta mixture, to the bound. No trials give 1,
    and so does a bound of 1, above which there is nothing. ValueError for a bound outside of [0, 1].
    """
    if not 0 <= bound <= 1:
        raise ValueError(f"bound is {bound}, expected 0 to 1.")
    count, total = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if bound == 1:
        return np.ones(np.broadcast(count, total).shape)
    a, b = count + 1, total - count + 1
    with np.errstate(divide="ignore"):  # the logarithm of a tail that underflows, or of a bound of 0
        above = betaln(a, b) + np.log(betaincc(a, b, bound)) - np.log1p(-bound)
        at_bound = xlogy(count, bound) + xlog1py(total - count, -bound)
    # Capped below overflow; 1e300 means any certainty, the impossible (a success at bound 0) too.
    evidence: NDArray[np.float64] = np.exp(np.minimum(above - at_bound, np.log(1e300)))
    return evidence
