"""McNemar's test and Newcombe's paired interval: published numbers, properties, coverage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from flipsearch.statistics.paired import mcnemar_mid_p, newcombe, paired_difference

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
    found = paired_difference(first, second)
    assert found.n == len(pairs)
    assert found.value == pytest.approx((sum(first) - sum(second)) / len(pairs))
    assert (found.low, found.high) == newcombe(
        sum(a and b for a, b in pairs),
        sum(a and not b for a, b in pairs),
        sum(b and not a for a, b in pairs),
        sum(not a and not b for a, b in pairs),
    )


def test_equal_contexts_have_a_width_all_the_same() -> None:
    found = paired_difference([True] * 30, [True] * 30)
    assert found.value == 0.0
    assert found.low < 0 < found.high


def test_coverage_is_near_its_level() -> None:
    """2,000 simulated studies of 60 prompts, contexts correlated and 20 points apart."""
    draw = random.Random(0)
    cells = [(True, True), (True, False), (False, True), (False, False)]
    covered = 0
    for _ in range(2000):
        pairs = draw.choices(cells, weights=[0.4, 0.3, 0.1, 0.2], k=60)
        found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
        covered += found.low <= 0.2 <= found.high
    assert 0.93 <= covered / 2000 <= 0.98


def test_unpaired_or_absent_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])
