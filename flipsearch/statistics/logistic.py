"""Logistic regression on a few features: small, exact and the same on every machine."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRIOR_SPREAD = 3.0
"""Standard deviation of a coefficient before anything is seen: labels that a feature splits cleanly leave it finite."""
STEPS, DIGITS = 50, 6


def fit_logistic(features: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return intercept and slopes (1 + K,) of the posterior mode under normal priors, for features (N, K), labels (N,).

    Newton's method, which the priors make converge; rounded, so that the last bits of a linear algebra library do not
    decide between equals. Features should be of size 1 or so. ValueError without rows.
    """
    rows, wanted = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if not len(rows):
        raise ValueError("expected at least one row, got none.")
    design = np.column_stack([np.ones(len(rows)), rows])
    precision = np.eye(design.shape[1]) / PRIOR_SPREAD**2
    coefficients = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p = _sigmoid(design @ coefficients)
        gradient = design.T @ (wanted - p) - precision @ coefficients
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
