"""Intervals and tests of rates: of one set of prompts, and of two contexts on the same prompts.

One fraction has Wilson's interval, a mean of bounded values Student's, a weighted sum MOVER's. A pair of contexts has
Newcombe's interval and McNemar's mid-p test; several have Holm's adjustment; a race, which tests after every rung and
may stop at any time, has e-values.

Prompts come in clusters: paraphrases and wrappers of one request resemble each other. Taken for independent prompts
they make an interval too narrow, so both are taken at the effective number of prompts.

Power, by the normal approximation: n prompts are answered under both contexts, `discordant` is the share on which
exactly one of them flips, and `delta` the difference of their flip rates, |delta| <= discordant. Two-sided at level
alpha,

    n = (z(1 - alpha / 2) sqrt(discordant) + z(power) sqrt(discordant - delta^2))^2 / delta^2

Sources: Miettinen 1968 (doi:10.2307/2528537); Connor 1987 (doi:10.2307/2531961), whose form this is.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincc, betaln, stdtrit, xlog1py, xlogy
from scipy.stats import rankdata

from flipsearch.core.measurements import Difference, Estimate, Rate

Floats = NDArray[np.float64]
LEVEL = 0.95
EQUAL_WITHIN = 1e-9
"""Values nearer than this are equal: differences of fractions of samples differ in their last bits."""


def two_sided_z(level: float) -> float:
    """Return the normal quantile with probability (1 - level) / 2 above it, e.g. 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(count: int, n: int) -> Rate:
    """Return count / n with its Wilson score interval; n = 0 gives [0, 1].

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953), without continuity correction.
    """
    if not 0 <= count <= n:
        raise ValueError(f"expected 0 <= count <= n, got count = {count}, n = {n}.")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    down, up = wilson_reach(count, n)
    # At 0 and n the ends are exactly 0 and 1; rounding would leave them a hair off, on the wrong side of the value.
    low = 0.0 if count == 0 else max(0.0, count / n - down)
    high = 1.0 if count == n else min(1.0, count / n + up)
    return Rate(count, n, low, high)


def wilson_reach(count: float, n: float) -> tuple[float, float]:
    """Return how far Wilson's interval reaches below and above count / n; neither need be a whole number."""
    z, share = two_sided_z(LEVEL), count / n
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
    return _students(array, min(max(float(array.mean()), low), high), n, low, high)


def _students(array: Floats, mean: float, n: int, low: float, high: float) -> Estimate:
    """Return Student's interval around the mean of independent values, as `mean_interval` has it, for n rows."""
    if array.max() - array.min() < EQUAL_WITHIN:
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / len(array))
        return Estimate(mean, mean - unseen * (mean - low), mean + unseen * (high - mean), n)
    num = len(array)
    half = float(stdtrit(num - 1, 0.5 + LEVEL / 2)) * float(array.std(ddof=1)) / math.sqrt(num)
    return Estimate(mean, max(low, mean - half), min(high, mean + half), n)


def clustered_mean(values: Sequence[float], clusters: Sequence[str], low: float = 0.0, high: float = 1.0) -> Estimate:
    """Return the mean of values in [low, high] with Student's interval over clusters; one cluster's name per value.

    Each of k clusters with sum s and size m of n values in all is taken as mean + (s - m mean) k / n: their variance
    over k is the linearised one of the ratio of sums to sizes (Cochran 1977, ch. 6). Without clusters of several values
    it is `mean_interval`.
    """
    if len(set(clusters)) == len(values):
        return mean_interval(values, low, high)
    mean = min(max(sum(values) / len(values), low), high)
    sizes, (sums,) = _sums(clusters, np.asarray(values))
    return _students(mean + (sums - mean * sizes) * len(sizes) / len(values), mean, len(values), low, high)


def paired_mean_difference(first: Sequence[float], second: Sequence[float], clusters: Sequence[str] = ()) -> Estimate:
    """Return mean(first) - mean(second) over the same problems, values in [0, 1], with Student's interval.

    `clusters` has one name per problem; () is as many clusters as problems.
    """
    differences = [left - right for left, right in zip(first, second, strict=True)]
    return clustered_mean(differences, clusters or [str(i) for i in range(len(differences))], -1.0, 1.0)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Return Spearman's correlation of n >= 4 pairs with its interval; None where one side is all ties.

    By Fisher's transformation with the error of Bonett and Wright (2000, doi:10.1007/BF02294183). At 1 its interval
    would have no width: its middle is then where half a swap of two neighbours would put it.
    """
    n = len(first)
    if min(len(set(first)), len(set(second))) < 2:
        return None
    value = float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
    most = 1 - 6 / (n * (n * n - 1))
    middle = min(max(value, -most), most)
    half = two_sided_z(LEVEL) * math.sqrt((1 + middle**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(middle) + side * half) for side in (-1, 1))
    return Estimate(value, min(low, value), max(high, value), n)


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


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Return rate(first) - rate(second) over the same n >= 1 prompts, with interval (Newcombe) and p-value."""
    table = [[0, 0], [0, 0]]
    for left, right in zip(first, second, strict=True):
        table[not left][not right] += 1
    (both, only_first), (only_second, neither) = table
    low, high = newcombe(both, only_first, only_second, neither)
    n = len(first)
    return Difference((only_first - only_second) / n, low, high, n, mcnemar_mid_p(only_first, only_second))


def newcombe(both: float, only_first: float, only_second: float, neither: float) -> tuple[float, float]:
    """Return the interval of P(first) - P(second) from the four cells of the paired table; ValueError if all are 0.

    It stays inside [-1, 1] and has a width without discordant pairs too. Cells need not be whole numbers.
    Source: Newcombe 1998, method 10 (doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C).
    """
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("expected at least one pair, got none.")
    (down1, up1), (down2, up2) = (wilson_reach(both + only, n) for only in (only_first, only_second))
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
    so a race may test after every rung without inflating its errors (Ramdas et al. 2023, doi:10.1214/23-STS894).

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
    """Return the least difference that `num_pairs` pairs find with probability `power`; None if they find none."""
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


def effective_rows(sums: Floats, squares: float, sizes: Floats, n: float) -> float:
    """Return how many independent rows carry as much information about a mean as n rows in clusters (C,).

    `sums` are of the rows' values (-1, 0 or 1) by cluster, `squares` is the sum of their squares. It is n / design
    effect, the design effect being the cluster-robust variance of the mean over that of independent rows. Both are
    taken with one cluster more, half of it ones and half zeros: of few clusters that differ, those seen differ too
    little too often. It is reduced for few clusters, whose variance is itself uncertain (Korn and Graubard 1998, Survey
    Methodology 24: times the squared ratio of Student's quantiles for rows and for clusters), and lies between 1 and n.
    Where all rows are alike, and there is no variance to see, it is the number of clusters, those of unequal size
    counting for fewer (Kish 1965, Survey Sampling: the square of the sum over the sum of squares).
    """
    total, num = float(sizes.sum()), len(sizes)
    mean, size = float(sums.sum()) / total, total / num
    if num == 1 or squares / total - mean**2 < EQUAL_WITHIN:
        return max(1.0, total**2 / float((sizes**2).sum()))
    sign = 1 if mean >= 0 else -1
    mean = (float(sums.sum()) + sign * size / 2) / (total + size)
    variance = (squares + size / 2) / (total + size) - mean**2
    residuals = float(((sums - mean * sizes) ** 2).sum()) + size**2 * ((1 - abs(mean)) ** 2 + mean**2) / 2
    robust = (num + 1) / num * residuals / (total + size) ** 2
    by_rows, by_clusters = (float(stdtrit(max(1.0, k - 1), 0.5 + LEVEL / 2)) for k in (n, num))
    return max(1.0, min(n, variance / robust) * min(1.0, (by_rows / by_clusters) ** 2))


def clustered_rate(hits: Sequence[bool], clusters: Sequence[str]) -> Rate:
    """Return the share of hits with its interval; `clusters` has one name per row."""
    if len(set(clusters)) == len(hits):
        return wilson(sum(hits), len(hits))
    sizes, (counts,) = _sums(clusters, hits)
    share, effective = sum(hits) / len(hits), effective_rows(counts, sum(hits), sizes, len(hits))
    down, up = wilson_reach(share * effective, effective)
    return Rate(sum(hits), len(hits), max(0.0, share - down), min(1.0, share + up))


def clustered_difference(first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str]) -> Difference:
    """Return rate(first) - rate(second) over the same n >= 1 prompts, with interval and p-value.

    Newcombe's interval from the paired table at the effective number of pairs, by the cluster-robust variance of the
    difference; the test flips the signs of whole clusters. ValueError for unequal lengths or no pairs.
    """
    if len(set(clusters)) == len(clusters):
        return paired_difference(first, second)
    left, right = np.array(first, dtype=bool), np.array(second, dtype=bool)
    cells = [left & right, left & ~right, ~left & right, ~left & ~right]
    sizes, sums = _sums(clusters, *cells)
    n, (both, only_first, only_second, neither) = len(left), map(sum, sums)
    value, differences = (only_first - only_second) / n, sums[1] - sums[2]
    scale = effective_rows(differences, only_first + only_second, sizes, n) / n
    low, high = newcombe(scale * both, scale * only_first, scale * only_second, scale * neither)
    return Difference(float(value), min(low, value), max(high, value), n, sign_flip_mid_p(differences.astype(int)))


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], clusters: Sequence[str], high: float) -> Estimate:
    """Return sum(parts) / sum(wholes) with its 95 % interval in [0, high]; `clusters` has one name per row.

    The linearised variance of a ratio over clusters with Student's quantile (Cochran 1977, ch. 6). A mean is a ratio
    whose wholes are 1. A single cluster has no spread to show, and its interval is all of [0, high].
    """
    whole = float(sum(wholes))
    if not whole:
        return Estimate(None, 0.0, high, len(parts))
    ratio = float(sum(parts)) / whole
    _, (tops, bottoms) = _sums(clusters, np.asarray(parts), np.asarray(wholes))
    num = len(tops)
    if num < 2:
        return Estimate(ratio, 0.0, high, len(parts))
    variance = num / (num - 1) * float(((tops - ratio * bottoms) ** 2).sum()) / whole**2
    half = float(stdtrit(num - 1, 0.5 + LEVEL / 2)) * math.sqrt(variance)
    return Estimate(ratio, max(0.0, ratio - half), min(high, ratio + half), len(parts))


def sign_flip_mid_p(differences: Sequence[int] | NDArray[np.int_]) -> float:
    """Return the exact two-sided mid-p value of "each cluster's difference is as likely as its negative"."""
    sizes = [abs(int(difference)) for difference in differences if difference]
    observed, total = abs(int(sum(differences))), sum(sizes)
    if max(sizes, default=1) == 1:
        return mcnemar_mid_p((total + observed) // 2, (total - observed) // 2)
    chances = np.ones(1)
    for size in sizes:
        chances = (np.pad(chances, (0, size)) + np.pad(chances, (size, 0))) / 2
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(chances[sums > observed].sum() + chances[sums == observed].sum() / 2)


def _sums(
    clusters: Sequence[str], *rows: Sequence[bool] | NDArray[Any]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return the sizes of the clusters, and the sum of each of `rows` by cluster."""
    _, index = np.unique(np.array(clusters), return_inverse=True)
    return np.bincount(index).astype(float), [
        np.bincount(index, weights=np.asarray(row, dtype=float)).astype(float) for row in rows
    ]
