"""Intervals of fractions, means and sums: published numbers, closed forms, properties, coverage."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, spearmanr, t, ttest_1samp

from flipsearch.core.measurements import Estimate, Rate
from flipsearch.statistics.intervals import (
    clustered_mean,
    mean_interval,
    paired_mean_difference,
    rank_correlation,
    two_sided_z,
    weighted_sum,
    wilson,
)

COUNTS = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_wilson_intervals(count: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, Table I, method 3."""
    rate = wilson(count, n)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


@given(COUNTS)
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    count, n = counts
    if n == 0:
        return
    expected = binomtest(count, n).proportion_ci(0.95, method="wilson")
    rate = wilson(count, n)
    assert rate.low == pytest.approx(expected.low, abs=1e-12)
    assert rate.high == pytest.approx(expected.high, abs=1e-12)


@given(COUNTS)
def test_wilson_holds_the_value_inside_zero_and_one(counts: tuple[int, int]) -> None:
    rate = wilson(*counts)
    value = rate.value if rate.value is not None else 0.5
    assert 0.0 <= rate.low <= value <= rate.high <= 1.0


@given(COUNTS)
def test_wilson_is_symmetric(counts: tuple[int, int]) -> None:
    count, n = counts
    rate, mirror = wilson(count, n), wilson(n - count, n)
    assert rate.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_no_counts_give_the_whole_range() -> None:
    assert wilson(0, 0) == Rate(0, 0, 0.0, 1.0)
    assert wilson(0, 0).value is None


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.9])
def test_coverage_of_wilson_is_near_its_level(n: int, truth: float) -> None:
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


QUARTERS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


@given(QUARTERS.filter(lambda values: len(set(values)) > 1))
def test_a_mean_gets_students_interval_clipped_to_the_range(values: list[float]) -> None:
    expected = ttest_1samp(values, 0.5).confidence_interval(0.95)
    result = mean_interval(values)
    assert result.value == pytest.approx(sum(values) / len(values))
    assert result.low == pytest.approx(max(0.0, expected.low), abs=1e-9)
    assert result.high == pytest.approx(min(1.0, expected.high), abs=1e-9)
    assert result.n == len(values)


@pytest.mark.parametrize("n", [1, 5, 50])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_zeros_or_ones_have_clopper_and_pearsons_width(value: float, n: int) -> None:
    expected = binomtest(int(value) * n, n).proportion_ci(0.95, method="exact")
    result = mean_interval([value] * n)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_equal_differences_have_a_width_on_both_sides() -> None:
    result = paired_mean_difference([0.5] * 20, [0.5] * 20)
    assert result.value == 0
    assert result.low == pytest.approx(-result.high)
    assert 0 < result.high < 0.2


def test_last_bits_are_no_spread() -> None:
    # 1 - 2/3 and 2/3 - 1/3 are one third, a bit apart.
    result = paired_mean_difference([1, 2 / 3] * 10, [2 / 3, 1 / 3] * 10)
    assert result.high - result.low > 0.1


@given(QUARTERS, st.randoms(use_true_random=False))
def test_differences_are_antisymmetric(first: list[float], rng: random.Random) -> None:
    second = rng.sample(first, len(first))
    change, mirror = paired_mean_difference(first, second), paired_mean_difference(second, first)
    assert change.value is not None
    assert change.value == pytest.approx(-(mirror.value or 0))
    assert (change.low, change.high) == pytest.approx((-mirror.high, -mirror.low))
    assert -1 <= change.low <= change.value <= change.high <= 1


def test_no_values_give_the_whole_range() -> None:
    assert mean_interval([]) == Estimate(None, 0.0, 1.0, 0)
    assert paired_mean_difference([], []) == Estimate(None, -1.0, 1.0, 0)


def test_impossible_values_and_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got 0 to 1.5"):
        mean_interval([0, 1.5])
    with pytest.raises(ValueError, match="shorter"):
        paired_mean_difference([1.0], [])
    with pytest.raises(ValueError, match="at least one part"):
        weighted_sum([], [])
    with pytest.raises(ValueError, match="without a value"):
        weighted_sum([1.0], [Estimate(None, 0, 1, 0)])


def mean_of_samples(rng: random.Random, skill: float, num_samples: int) -> float:
    return sum(rng.random() < skill for _ in range(num_samples)) / num_samples


def test_coverage_of_a_mean_and_of_a_difference_is_near_its_level() -> None:
    """1,500 simulated runs of 60 problems of unlike hardness, 4 answers each; the second model is 0.1 worse on each."""
    rng = random.Random(1)
    covered = [0, 0]
    for _ in range(1500):
        skills = [rng.uniform(0.1, 1.0) for _ in range(60)]
        first = [mean_of_samples(rng, skill, 4) for skill in skills]
        second = [mean_of_samples(rng, skill - 0.1, 4) for skill in skills]
        mean, change = mean_interval(first), paired_mean_difference(second, first)
        covered[0] += mean.low <= 0.55 <= mean.high
        covered[1] += change.low <= -0.1 <= change.high
    assert all(0.93 <= count / 1500 <= 0.97 for count in covered), covered


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 1), st.floats(0.01, 0.2)), min_size=1, max_size=6))
def test_a_sum_of_normal_intervals_is_the_delta_method(parts: list[tuple[float, float, float]]) -> None:
    weights = [weight for weight, _, _ in parts]
    result = weighted_sum(weights, [Estimate(v, v - 1.96 * s, v + 1.96 * s, 10) for _, v, s in parts], offset=1.0)
    error = math.sqrt(sum((weight * s) ** 2 for weight, _, s in parts))
    value = 1 + sum(weight * v for weight, v, _ in parts)
    assert result.value == pytest.approx(value)
    assert (result.low, result.high) == pytest.approx((value - 1.96 * error, value + 1.96 * error))
    assert result.n == 10 * len(parts)


def test_one_part_with_weight_minus_one_is_its_mirror() -> None:
    result = weighted_sum([-1.0], [Estimate(0.2, 0.1, 0.5, 9)], offset=1.0)
    assert (result.value, result.low, result.high) == pytest.approx((0.8, 0.5, 0.9))


def test_coverage_of_a_composite_is_near_its_level_with_rates_near_zero() -> None:
    """2,000 simulated scorecards of five sets, where the plain delta method would often have no width."""
    rng, truths, sizes = random.Random(2), (0.3, 0.1, 0.02, 0.05, 0.01), (60, 100, 40, 80, 50)
    covered = 0
    for _ in range(2000):
        counts = [sum(rng.random() < truth for _ in range(n)) for truth, n in zip(truths, sizes, strict=True)]
        rates = [wilson(count, n) for count, n in zip(counts, sizes, strict=True)]
        result = weighted_sum([-0.2] * 5, [Estimate(rate.value, rate.low, rate.high, rate.n) for rate in rates], 1.0)
        covered += result.low <= 1 - sum(truths) / 5 <= result.high
    assert 0.93 <= covered / 2000 <= 0.98, covered


def test_the_mean_of_problems_own_means_has_the_cluster_robust_error_of_all_samples() -> None:
    """The sandwich of an intercept, written out: the clusters' squared sums of residuals / N^2, times n / (n - 1)."""
    rng, num, size = random.Random(3), 25, 4
    values = [[float(rng.random() < skill) for _ in range(size)] for skill in (rng.random() for _ in range(num))]
    mean = sum(map(sum, values)) / (num * size)
    meat = sum(sum(first - mean for first in row) ** 2 for row in values)
    error = math.sqrt(num / (num - 1) * meat) / (num * size)
    result, quantile = mean_interval([sum(row) / size for row in values]), float(t.ppf(0.975, num - 1))
    assert result.n == num
    ends = mean - quantile * error, mean + quantile * error
    assert (result.value, result.low, result.high) == pytest.approx((mean, *ends))


def test_a_rank_correlation_is_spearmans_and_even_a_perfect_one_is_not_certain() -> None:
    first, second = [0.1, 0.4, 0.4, 0.9, 0.7, 0.2, 0.8], [0.3, 0.2, 0.5, 0.8, 0.8, 0.1, 0.6]
    result = rank_correlation(first, second)
    assert result is not None
    assert result.value is not None
    assert result.value == pytest.approx(spearmanr(first, second).statistic)
    assert -1 <= result.low < result.value < result.high <= 1
    perfect = rank_correlation(range(5), range(5))
    assert perfect is not None
    assert perfect.value == pytest.approx(1.0)
    assert perfect.high == pytest.approx(1.0)
    assert 0 < perfect.low < 0.5  # five contexts in the same order may still be luck
    assert rank_correlation([0.5] * 6, range(6)) is None


def test_a_clustered_mean_is_that_of_the_clusters() -> None:
    values = [0.25, 1.0, 0.5, 0.75]
    alone = mean_interval(values)
    assert clustered_mean(values, ["a", "b", "c", "d"]) == alone
    doubled = clustered_mean(values * 2, ["a", "b", "c", "d"] * 2)  # says no more than once
    assert (doubled.value, doubled.n) == (alone.value, 8)
    assert (doubled.low, doubled.high) == pytest.approx((alone.low, alone.high))
    assert clustered_mean([0.5] * 6, ["a", "b"] * 3) == replace(mean_interval([0.5] * 2), n=6)
    change = paired_mean_difference(values * 2, [0.5] * 8, ["a", "b", "c", "d"] * 2)
    once = paired_mean_difference(values, [0.5] * 4)
    assert (change.value, change.low, change.high) == pytest.approx((once.value, once.low, once.high))
