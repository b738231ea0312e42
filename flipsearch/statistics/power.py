"""Power of the paired (McNemar) test, and the flip rate that sampling again shows by itself.

n prompts are answered under both contexts. `discordant` is the share on which exactly one of them flips, `delta` the
difference of their flip rates; |delta| <= discordant. Two-sided at level alpha, by the normal approximation:

    n = (z(1 - alpha / 2) sqrt(discordant) + z(power) sqrt(discordant - delta^2))^2 / delta^2

Sources: Miettinen 1968 (doi:10.2307/2528537); Connor 1987 (doi:10.2307/2531961), whose form this is.
"""

import math
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

from flipsearch.statistics.intervals import two_sided_z


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


def redraw_flip_rate(samples: int, unsafe_at: int, a: float = 1.0, b: float = 1.0) -> float:
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
