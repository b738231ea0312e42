"""Two contexts on the same prompts: paired differences, their tests, their power, and sequential evidence.

Newcombe's interval and McNemar's mid-p test for one pair of contexts; Holm's adjustment for several; e-values where
one looks after every prompt and may stop at any time. Power, by the normal approximation: n prompts are answered under
both contexts, `discordant` is the share on which exactly one of them flips, and `delta` the difference of their flip
rates, |delta| <= discordant. Two-sided at level alpha,

    n = (z(1 - alpha / 2) sqrt(discordant) + z(power) sqrt(discordant - delta^2))^2 / delta^2

Sources: Miettinen 1968 (doi:10.2307/2528537); Connor 1987 (doi:10.2307/2531961), whose form this is.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincc, betaln, xlog1py, xlogy

from flipsearch.core.records import Difference
from flipsearch.statistics.intervals import two_sided_z, wilson_reach


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


def newcombe(
    both: float, only_first: float, only_second: float, neither: float, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of P(first) - P(second) from the four cells of the paired table; ValueError if all are 0.

    It stays inside [-1, 1] and has a width without discordant pairs too. Cells need not be whole numbers.
    Source: Newcombe 1998, method 10 (doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C).
    """
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("expected at least one pair, got none.")
    (down1, up1), (down2, up2) = (wilson_reach(both + only, n, level) for only in (only_first, only_second))
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


def pairs_needed(delta: float, discordant: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the least number of pairs on which a difference `delta` is found with probability `power`.

    ValueError unless 0 < delta <= discordant <= 1 and alpha and power lie between 0 and 1, with power above alpha.
    """
    if not 0 < delta <= discordant <= 1:
        raise ValueError(f"expected 0 < delta <= discordant <= 1, got delta = {delta}, discordant = {discordant}.")
    return math.ceil(_num_pairs(delta, discordant, alpha, power))


def detectable_difference(num_pairs: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the least difference that `num_pairs` pairs find with probability `power`; None if they find none.

    For a difference above `discordant` the share of discordant pairs is the difference, all of them on one side.
    """
    if not 0 < discordant <= 1:
        raise ValueError(f"expected 0 < discordant <= 1, got {discordant}.")

    def num_missing(delta: float) -> float:
        return _num_pairs(delta, max(delta, discordant), alpha, power) - num_pairs

    if num_pairs <= 0 or num_missing(1.0) > 0:
        return None
    return float(brentq(num_missing, 1e-6, 1.0)) if num_missing(1e-6) > 0 else 1e-6


def _num_pairs(delta: float, discordant: float, alpha: float, power: float) -> float:
    if not 0 < alpha < power < 1:
        raise ValueError(f"expected 0 < alpha < power < 1, got alpha = {alpha}, power = {power}.")
    spread = math.sqrt(max(0.0, discordant - delta**2))
    z_power = NormalDist().inv_cdf(power)
    return (two_sided_z(1 - alpha) * math.sqrt(discordant) + z_power * spread) ** 2 / delta**2


def resample_flip_rate(samples: int, unsafe_at: int, a: float = 1.0, b: float = 1.0) -> float:
    """Return the flip rate that merely sampling again shows for M = `samples` and m = `unsafe_at`.

    A prompt that is unsafe with probability p in each sample, p ~ Beta(a, b), is selected if X >= m of its M samples
    are unsafe. M further samples give Y unsafe ones, and the prompt reads as flipped, though nothing changed, if
    Y < m. Given p, X and Y are independent and binomial, and so

        P(X = x, Y = y) = C(M, x) C(M, y) B(a + x + y, b + 2M - x - y) / B(a, b)
        P(flip | selected) = its sum over x >= m, y < m / its sum over x >= m, all y

    which is b / (a + b + 1) for M = m = 1: a third for uniform p.
    ValueError unless 1 <= unsafe_at <= samples and a, b > 0.
    """
    if not 1 <= unsafe_at <= samples or min(a, b) <= 0:
        raise ValueError(f"expected 1 <= unsafe_at <= samples and a, b > 0, got {unsafe_at}, {samples}, {a}, {b}.")
    num = np.arange(samples + 1)
    log_ways = -np.log(samples + 1) - betaln(num + 1, samples - num + 1)
    both = num[:, None] + num
    joint = np.exp(log_ways[:, None] + log_ways + betaln(a + both, b + 2 * samples - both) - betaln(a, b))
    selected = joint[unsafe_at:]
    return float(selected[:, :unsafe_at].sum() / selected.sum())
