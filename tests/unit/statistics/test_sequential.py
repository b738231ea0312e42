"""e-values: the mixture's closed forms, and the promise that they hold whenever one looks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from flipsearch.statistics.paired import e_value


def test_no_draws_and_nothing_above_are_no_evidence() -> None:
    assert e_value(0, 0, 0.5) == pytest.approx(1.0)
    assert e_value(7, 7, 1.0) == 1.0


def test_all_successes_in_closed_form() -> None:
    # The mean over q in (1/2, 1) of (2 q)^16.
    assert e_value(16, 16, 0.5) == pytest.approx((2**17 - 1) / 17)


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.05, 0.1, 0.5, 0.9]))
def test_is_the_mixture_of_likelihood_ratios(count: int, misses: int, bound: float) -> None:
    def ratio(q: float) -> float:
        return math.exp(count * math.log(q / bound) + misses * (math.log1p(-q) - math.log1p(-bound)))

    mixed, _ = quad(ratio, bound, 1 - 1e-12, limit=200)
    assert e_value(count, count + misses, bound) == pytest.approx(mixed / (1 - bound), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("bound", [0.05, 0.1, 0.5])
def test_expectation_at_the_bound_is_one(bound: float) -> None:
    n = 30
    counts = np.arange(n + 1)
    log_weights = [math.log(math.comb(n, k)) + k * math.log(bound) + (n - k) * math.log1p(-bound) for k in counts]
    assert float(np.exp(log_weights) @ e_value(counts, n, bound)) == pytest.approx(1.0)


def test_a_success_that_cannot_be_is_certainty() -> None:
    assert e_value(1, 1, 0.0) > 1e299
    assert e_value(0, 10, 0.0) == pytest.approx(1 / 11)


def test_looking_after_every_draw_errs_at_most_alpha() -> None:
    draws = np.random.default_rng(0).random((4000, 200)) < 0.5
    counts = draws.cumsum(axis=1)
    highest = e_value(counts, np.arange(1, 201), 0.5).max(axis=1)
    # Three standard errors of 4,000 studies.
    assert (highest >= 10).mean() <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 4000)
    assert (highest >= 10).mean() > 0.01, "and is not so careful that it never cuts"


def test_a_bound_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        e_value(1, 2, 1.5)
