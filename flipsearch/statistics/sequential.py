"""Evidence that may be looked at after every prompt: e-values that stay valid whenever one stops.

Under its null hypothesis an e-value exceeds 1 / alpha at any time with probability at most alpha (Ville's inequality),
so a race may look after every rung without inflating its errors. Source: Ramdas et al. 2023, doi:10.1214/23-STS894.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaln, xlog1py, xlogy


def e_value(counts: ArrayLike, totals: ArrayLike, bound: float) -> NDArray[np.float64]:
    """Return the evidence against "the rate is at most `bound`" in `counts` successes of `totals` draws.

    The likelihood ratio of the bound to rates above it, mixed uniformly over (bound, 1): a beta mixture. No draws give
    1, and a bound of 1 always does, for nothing lies above it. ValueError for a bound outside of [0, 1].
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
    # Held below overflow; 1e300 stands for any certainty, the impossible (a success at bound 0) too.
    evidence: NDArray[np.float64] = np.exp(np.minimum(above - at_bound, np.log(1e300)))
    return evidence
