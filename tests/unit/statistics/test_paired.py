"""McNemar, Newcombe, Holm and e-values: published numbers, closed forms, properties, coverage."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, binomtest

from flipsearch.statistics.intervals import e_value, holm, mcnemar_mid_p, newcombe, paired_difference

CELLS = st.tuples(*[st.integers(0, 60)] * 4).filter(any)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ((1, 1, 7, 12), -0.507, -0.026),  # airway responsiveness, Fagerland et al. 2014, Stat Med 33:2850-2875
        ((20, 12, 2, 16), 0.056156, 0.329207),  # culture media, Armitage and Berry 1994 as in StatsDirect's manual
    ],
)
def test_published_intervals(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    digits = 3 if low < 0 else 6
    assert tuple(round(end, digits) for end in newcombe(*cells)) == (low, high)


def test_published_mid_p() -> None:
    """Fagerland et al. 2013, doi:10.1186/1471-2288-13-91: 1 and 7 discordant pairs."""
    assert round(mcnemar_mid_p(1, 7), 4) == 0.0391


@given(st.integers(0, 300), st.integers(0, 300))
def test_mid_p_is_the_exact_test_less_half_of_what_was_seen(only_first: int, only_second: int) -> None:
    n = only_first + only_second
    if n == 0:
        assert mcnemar_mid_p(0, 0) == 1.0
        return
    seen = binom.pmf(only_first, n, 0.5)
    exact = binomtest(only_first, n).pvalue
    halved = seen / 2 if only_first == only_second else seen
    assert mcnemar_mid_p(only_first, only_second) == pytest.approx(exact - halved, abs=1e-9)
    assert mcnemar_mid_p(only_first, only_second) == mcnemar_mid_p(only_second, only_first)


@given(CELLS)
def test_interval_holds_the_difference_and_is_antisymmetric(cells: tuple[int, int, int, int]) -> None:
    both, first, second, neither = cells
    low, high = newcombe(both, first, second, neither)
    value = (first - second) / sum(cells)
    assert -1 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    mirrored = newcombe(both, second, first, neither)
    assert list(mirrored) == pytest.approx([-high, -low], abs=1e-12)


@given(PAIRS)
def test_difference_of_labels(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    result = paired_difference(first, second)
    assert result.n == len(pairs)
    assert result.value == pytest.approx((sum(first) - sum(second)) / len(pairs))
    assert (result.low, result.high) == newcombe(
        sum(a and b for a, b in pairs),
        sum(a and not b for a, b in pairs),
        sum(b and not a for a, b in pairs),
        sum(not a and not b for a, b in pairs),
    )


def test_equal_contexts_have_a_width_all_the_same() -> None:
    result = paired_difference([True] * 30, [True] * 30)
    assert result.value == 0.0
    assert result.low < 0 < result.high


def test_coverage_is_near_its_level() -> None:
    """2,000 simulated studies of 60 prompts, contexts correlated and 20 points apart."""
    rng = random.Random(0)
    cells = [(True, True), (True, False), (False, True), (False, False)]
    covered = 0
    for _ in range(2000):
        pairs = rng.choices(cells, weights=[0.4, 0.3, 0.1, 0.2], k=60)
        result = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
        covered += result.low <= 0.2 <= result.high
    assert 0.93 <= covered / 2000 <= 0.98


def test_unpaired_or_absent_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])


P_VALUES = st.lists(st.floats(min_value=0, max_value=1), max_size=8)


def test_worked_example_of_holm() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@given(P_VALUES)
def test_holm_is_never_below_the_raw_value_and_in_the_same_order(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= 1
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted_in_order = [holm(p_values)[index] for index in order]
    assert adjusted_in_order == sorted(adjusted_in_order)


def test_any_false_claim_is_as_rare_as_promised() -> None:
    generator = random.Random(0)
    families = [holm([generator.random() for _ in range(5)]) for _ in range(4000)]
    false_claims = sum(min(adjusted) < 0.05 for adjusted in families)
    assert 0.03 < false_claims / len(families) < 0.06


def test_no_trials_and_nothing_above_are_no_evidence() -> None:
    assert e_value(0, 0, 0.5) == pytest.approx(1.0)
    assert e_value(7, 7, 1.0) == 1.0


def test_the_e_value_of_all_successes_in_closed_form() -> None:
    # The mean over q in (1/2, 1) of (2 q)^16.
    assert e_value(16, 16, 0.5) == pytest.approx((2**17 - 1) / 17)


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.05, 0.1, 0.5, 0.9]))
def test_an_e_value_is_the_mixture_of_likelihood_ratios(count: int, misses: int, bound: float) -> None:
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


def test_testing_after_every_sample_errs_at_most_alpha() -> None:
    coins = np.random.default_rng(0).random((4000, 200)) < 0.5
    counts = coins.cumsum(axis=1)
    highest = e_value(counts, np.arange(1, 201), 0.5).max(axis=1)
    # Three standard errors of 4,000 studies.
    assert (highest >= 10).mean() <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 4000)
    assert (highest >= 10).mean() > 0.01, "and is not so careful that it never cuts"


def test_a_bound_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        e_value(1, 2, 1.5)
