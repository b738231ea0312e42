"""Logistic regression: the mode of its own posterior, and what data and prior make of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from flipsearch.statistics.regression import PRIOR_SPREAD, fit_logistic, predict_logistic

PRIOR = (-1.0, 0.5, 2.0)


def loss(coefficients: np.ndarray, features: np.ndarray, labels: np.ndarray) -> float:
    margins = (coefficients[0] + features @ coefficients[1:]) * np.where(labels, 1, -1)
    return float(np.logaddexp(0, -margins).sum() + ((coefficients - PRIOR) ** 2).sum() / (2 * PRIOR_SPREAD**2))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_it_is_the_mode_of_the_posterior(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.column_stack([rng.uniform(0, 3, num), rng.integers(0, 2, num)])
    labels = rng.random(num) < 0.4
    found = fit_logistic(features, labels, PRIOR)
    best = minimize(loss, np.zeros(3), args=(features, labels), tol=1e-10)
    assert found == pytest.approx(best.x, abs=1e-3)


def test_no_data_leave_the_prior() -> None:
    assert fit_logistic([], [], PRIOR).tolist() == list(PRIOR)


def test_labels_that_a_feature_splits_stay_finite_and_are_learnt() -> None:
    features = [(0.0, 0.0)] * 20 + [(0.0, 1.0)] * 20
    found = fit_logistic(features, [False] * 20 + [True] * 20, (0.0, 0.0, 0.0))
    assert np.isfinite(found).all()
    low, high = predict_logistic(found, [(0.0, 0.0), (0.0, 1.0)])
    assert low < 0.1
    assert high > 0.9
