"""Logistic regression on a few features, and shrinkage of many rates by an empirical Bayes beta prior."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from flipsearch.core.measurements import Rate

PRIOR_SPREAD = 3.0
"""Prior standard deviation of a coefficient: labels that a feature separates perfectly leave it finite."""
STEPS, DIGITS = 50, 6

MEANS = np.linspace(0.02, 0.98, 49)
STRENGTHS = np.geomspace(0.5, 64.0, 15)
VAGUE_STRENGTH = 4.0
"""Prompts that the prior is worth while too few arms are measured to show how much they differ."""
MIN_ARMS = 4


def fit_logistic(features: ArrayLike, labels: ArrayLike, prior: ArrayLike) -> NDArray[np.float64]:
    """Return intercept and slopes (1 + K,) at the posterior mode, for features (N, K) and labels (N,).

    `prior` (1 + K,) are the means of independent normal priors of spread PRIOR_SPREAD; without rows they are returned.
    Features should be of size 1 or so. Newton's method, which the priors make converge (Gelman et al. 2008,
    doi:10.1214/08-AOAS191, on weakly informative priors). The result is rounded, so that the last bits of a linear
    algebra library do not decide between equals.
    """
    targets, mean = np.asarray(labels, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    rows = np.asarray(features, dtype=np.float64).reshape(len(targets), len(mean) - 1)
    design = np.column_stack([np.ones(len(rows)), rows])
    precision = np.eye(len(mean)) / PRIOR_SPREAD**2
    coefficients = mean
    for _ in range(STEPS):
        p = _sigmoid(design @ coefficients)
        gradient = design.T @ (targets - p) - precision @ (coefficients - mean)
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + precision, gradient)
        # A full step from a far point can overshoot; the direction is right.
        coefficients = coefficients + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 10.0**-DIGITS / 10:
            break
    rounded: NDArray[np.float64] = coefficients.round(DIGITS)
    return rounded


def predict_logistic(coefficients: ArrayLike, features: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities (...,) of label 1 at features (..., K)."""
    weights = np.asarray(coefficients, dtype=np.float64)
    return _sigmoid(weights[0] + np.asarray(features, dtype=np.float64) @ weights[1:])


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(x, -60, 60)))
    return probabilities


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """A beta prior of an arm's rate, before it is measured."""

    mean: float
    strength: float
    """How many prompts the prior is worth."""

    def shrink(self, rate: Rate) -> float:
        """Return the posterior mean of a rate: near the rate for many prompts, the prior's mean for none."""
        return (rate.count + self.strength * self.mean) / (rate.n + self.strength)


def fit_prior(rates: Sequence[Rate]) -> BetaPrior:
    """Return the beta prior under which the rates of all arms are most likely (beta-binomial, on a grid).

    Makes rates on unequal numbers of prompts comparable: arms that differ much give a weak prior, arms that are alike
    a strong one. With fewer than MIN_ARMS measured arms its mean is the pooled rate, clipped to the grid, and its
    strength VAGUE_STRENGTH. Source of the beta-binomial: Skellam 1948, Journal of the Royal Statistical Society B
    10:257-261.
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
