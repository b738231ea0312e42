"""Wilson's interval: published numbers, properties, coverage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from flipsearch.core.records import Rate
from flipsearch.statistics.intervals import two_sided_z, wilson

COUNTS = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_examples(count: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, Table I, method 3."""
    rate = wilson(count, n)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


@given(COUNTS, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_agrees_with_scipy(counts: tuple[int, int], level: float) -> None:
    count, n = counts
    if n == 0:
        return
    expected = binomtest(count, n).proportion_ci(level, method="wilson")
    rate = wilson(count, n, level)
    assert rate.low == pytest.approx(expected.low, abs=1e-12)
    assert rate.high == pytest.approx(expected.high, abs=1e-12)


@given(COUNTS)
def test_holds_the_value_inside_zero_and_one(counts: tuple[int, int]) -> None:
    rate = wilson(*counts)
    value = rate.value if rate.value is not None else 0.5
    assert 0.0 <= rate.low <= value <= rate.high <= 1.0


@given(COUNTS)
def test_is_symmetric(counts: tuple[int, int]) -> None:
    count, n = counts
    rate, mirror = wilson(count, n), wilson(n - count, n)
    assert rate.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_nothing_measured_says_nothing() -> None:
    assert wilson(0, 0) == Rate(0, 0, 0.0, 1.0)
    assert wilson(0, 0).value is None


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.9])
def test_coverage_is_near_its_level(n: int, truth: float) -> None:
    """Exact, by summing over every count: Wilson's coverage is near 95 % on average and not far below anywhere."""
    inside = [count for count in range(n + 1) if wilson(count, n).low <= truth <= wilson(count, n).high]
    assert 0.91 <= sum(binom.pmf(count, n, truth) for count in inside) <= 0.99


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_impossible_counts_are_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= count <= n"):
        wilson(count, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_fraction(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        two_sided_z(level)
