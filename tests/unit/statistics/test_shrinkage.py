"""Shrinkage: towards the prior, the more so for few prompts; and the prior that drew the arms is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.records import Rate
from flipsearch.statistics.intervals import wilson
from flipsearch.statistics.regression import BetaPrior, fit_prior


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.02, 0.98), st.floats(0.5, 64))
def test_shrinking_goes_towards_the_prior(num_flips: int, num_stays: int, mean: float, strength: float) -> None:
    rate = wilson(num_flips, num_flips + num_stays)
    low, high = sorted((mean if rate.value is None else rate.value, mean))
    assert low - 1e-9 <= BetaPrior(mean, strength).shrink(rate) <= high + 1e-9


def test_few_prompts_are_shrunken_more() -> None:
    prior = BetaPrior(0.5, 4)
    assert prior.shrink(wilson(16, 16)) < prior.shrink(wilson(100, 100))
    assert prior.shrink(wilson(0, 16)) > prior.shrink(wilson(0, 100))


def _drawn(mean: float, strength: float, n: int) -> list[Rate]:
    rng = np.random.default_rng(1)
    return [wilson(int(rng.binomial(n, p)), n) for p in rng.beta(mean * strength, (1 - mean) * strength, 200)]


@pytest.mark.parametrize(("mean", "strength"), [(0.3, 1.0), (0.6, 8.0)])
def test_the_prior_that_drew_the_arms_is_found(mean: float, strength: float) -> None:
    found = fit_prior(_drawn(mean, strength, 50))
    assert found.mean == pytest.approx(mean, abs=0.06)
    assert found.strength == pytest.approx(strength, rel=0.5)


def test_with_few_arms_the_pooled_rate_is_the_prior() -> None:
    assert fit_prior([wilson(10, 10), wilson(0, 30)]) == BetaPrior(0.25, 4.0)
    assert fit_prior([]).mean == 0.5
    assert fit_prior([wilson(0, 0)]).mean == 0.5
