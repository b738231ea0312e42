"""Logistic regression on a few features: small, exact and the same on every machine.

Rates of many arms seen on unequal numbers of prompts, made comparable: empirical Bayes with a beta prior.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from flipsearch.core.records import Rate

PRIOR_SPREAD = 3.0
"""Standard deviation of a coefficient before anything is seen: labels that a feature splits cleanly leave it finite."""
STEPS, DIGITS = 50, 6


def fit_logistic(features: ArrayLike, labels: ArrayLike, prior: ArrayLike) -> NDArray[np.float64]:
    """Return intercept and slopes (1 + K,) of the posterior mode, for features (N, K) and labels (N,).

    `prior` (1 + K,) are the means of normal priors; without rows it is what is returned. Newton's method, which the
    priors make converge; rounded, so that the last bits of a linear algebra library do not decide between equals.
    Features should be of size 1 or so.
    """
    wanted, mean = np.asarray(labels, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    rows = np.asarray(features, dtype=np.float64).reshape(len(wanted), len(mean) - 1)
    design = np.column_stack([np.ones(len(rows)), rows])
    precision = np.eye(len(mean)) / PRIOR_SPREAD**2
    coefficients = mean
    for _ in range(STEPS):
        p = _sigmoid(design @ coefficients)
        gradient = design.T @ (wanted - p) - precision @ (coefficients - mean)
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + precision, gradient)
        # A full step from a far point can overshoot; the direction is right.
        coefficients = coefficients + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 10.0**-DIGITS / 10:
            break
    found: NDArray[np.float64] = coefficients.round(DIGITS)
    return found


def predict_logistic(coefficients: ArrayLike, features: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities (...,) of label 1 at features (..., K)."""
    weights = np.asarray(coefficients, dtype=np.float64)
    return _sigmoid(weights[0] + np.asarray(features, dtype=np.float64) @ weights[1:])


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(x, -60, 60)))
    return found


MEANS = np.linspace(0.02, 0.98, 49)
STRENGTHS = np.geomspace(0.5, 64.0, 15)
VAGUE_STRENGTH = 4.0
"""Prompts that the prior is worth while there are too few arms to tell how much they differ."""
MIN_ARMS = 4


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """What is known of an arm before it is measured."""

    mean: float
    """Expected rate, in (0, 1)."""
    strength: float
    """How many prompts that is worth."""

    def shrink(self, rate: Rate) -> float:
        """Return the posterior mean of a rate: what it says for many prompts, the prior's mean for none."""
        return (rate.count + self.strength * self.mean) / (rate.n + self.strength)


def fit_prior(rates: Sequence[Rate]) -> BetaPrior:
    """Return the beta prior under which the rates of all arms are most likely (beta-binomial, on a grid).

    Arms that differ much give a weak prior, arms that are alike a strong one. With fewer than MIN_ARMS measured arms
    its mean is the pooled rate, held inside of the grid, and its strength VAGUE_STRENGTH.
    """
    measured = [rate for rate in rates if rate.n]
    if len(measured) < MIN_ARMS:
        pooled = sum(rate.count for rate in measured) / max(1, sum(rate.n for rate in measured)) if measured else 0.5
        return BetaPrior(float(np.clip(pooled, MEANS[0], MEANS[-1])), VAGUE_STRENGTH)
    counts = np.array([rate.count for rate in measured], dtype=float)[:, None, None]
    misses = np.array([rate.n - rate.count for rate in measured], dtype=float)[:, None, None]
    a, b = MEANS[:, None] * STRENGTHS, (1 - MEANS[:, None]) * STRENGTHS
    # Rounded, so that the last bits of a linear algebra library do not decide between equals.
    likelihood = (betaln(a + counts, b + misses) - betaln(a, b)).sum(axis=0).round(9)
    mean, strength = np.unravel_index(likelihood.argmax(), likelihood.shape)
    return BetaPrior(float(MEANS[mean]), float(STRENGTHS[strength]))
