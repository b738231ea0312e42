"""Logistic regression as a posterior mode, and shrinkage of rates by a fitted beta prior."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from flipsearch.core.measurements import Rate
from flipsearch.statistics.intervals import wilson
from flipsearch.statistics.regression import PRIOR_SPREAD, BetaPrior, fit_logistic, fit_prior, predict_logistic

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
    result = fit_logistic(features, labels, PRIOR)
    best = minimize(loss, np.zeros(3), args=(features, labels), tol=1e-10)
    assert result == pytest.approx(best.x, abs=1e-3)


def test_no_data_leave_the_prior() -> None:
    assert fit_logistic([], [], PRIOR).tolist() == list(PRIOR)


def test_labels_that_a_feature_splits_stay_finite_and_are_learnt() -> None:
    features = [(0.0, 0.0)] * 20 + [(0.0, 1.0)] * 20
    result = fit_logistic(features, [False] * 20 + [True] * 20, (0.0, 0.0, 0.0))
    assert np.isfinite(result).all()
    low, high = predict_logistic(result, [(0.0, 0.0), (0.0, 1.0)])
    assert low < 0.1
    assert high > 0.9


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.02, 0.98), st.floats(0.5, 64))
def test_shrinking_goes_towards_the_prior(num_flips: int, num_stays: int, mean: float, strength: float) -> None:
    rate = wilson(num_flips, num_flips + num_stays)
    low, high = sorted((mean if rate.value is None else rate.value, mean))
    assert low - 1e-9 <= BetaPrior(mean, strength).shrink(rate) <= high + 1e-9


def test_few_prompts_are_shrunken_more() -> None:
    prior = BetaPrior(0.5, 4)
    assert prior.shrink(wilson(16, 16)) < prior.shrink(wilson(100, 100))
    assert prior.shrink(wilson(0, 16)) > prior.shrink(wilson(0, 100))


def _arms(mean: float, strength: float, n: int) -> list[Rate]:
    rng = np.random.default_rng(1)
    return [wilson(int(rng.binomial(n, p)), n) for p in rng.beta(mean * strength, (1 - mean) * strength, 200)]


@pytest.mark.parametrize(("mean", "strength"), [(0.3, 1.0), (0.6, 8.0)])
def test_the_prior_that_drew_the_arms_is_found(mean: float, strength: float) -> None:
    result = fit_prior(_arms(mean, strength, 50))
    assert result.mean == pytest.approx(mean, abs=0.06)
    assert result.strength == pytest.approx(strength, rel=0.5)


def test_with_few_arms_the_pooled_rate_is_the_prior() -> None:
    assert fit_prior([wilson(10, 10), wilson(0, 30)]) == BetaPrior(0.25, 4.0)
    assert fit_prior([]).mean == 0.5
    assert fit_prior([wilson(0, 0)]).mean == 0.5
