"""What drawing again does by itself: prompts picked by unsafe draws that would be safe in draws of their own.

A prompt that is unsafe with probability p in each draw, p ~ Beta(a, b), is picked if X >= m of its M draws are unsafe.
M further draws of it give Y unsafe ones; the prompt then reads as flipped, though nothing was done, if Y < m. Given p,
X and Y are independent and binomial, and so

    P(X = x, Y = y) = C(M, x) C(M, y) B(a + x + y, b + 2M - x - y) / B(a, b)
    P(flip | picked) = sum of it over x >= m, y < m / sum of it over x >= m, all y

which is b / (a + b + 1) for M = m = 1: a third for uniform p.
"""

import numpy as np
from scipy.special import betaln


def redraw_flip_rate(samples: int, unsafe_at: int, a: float = 1.0, b: float = 1.0) -> float:
    """Return the flip rate that a mere redraw of M = `samples` draws shows at m = `unsafe_at`, p_unsafe ~ Beta(a, b).

    ValueError unless 1 <= unsafe_at <= samples and a, b > 0.
    """
    if not 1 <= unsafe_at <= samples or min(a, b) <= 0:
        raise ValueError(f"expected 1 <= unsafe_at <= samples and a, b > 0, got {unsafe_at}, {samples}, {a}, {b}.")
    num = np.arange(samples + 1)
    log_ways = -np.log(samples + 1) - betaln(num + 1, samples - num + 1)
    both = num[:, None] + num
    joint = np.exp(log_ways[:, None] + log_ways + betaln(a + both, b + 2 * samples - both) - betaln(a, b))
    picked = joint[unsafe_at:]
    return float(picked[:, :unsafe_at].sum() / picked.sum())
