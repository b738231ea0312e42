"""A judge beside people: known tables by hand, intervals by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.statistics.agreement import agreement, clustered_share


def test_a_table_by_hand() -> None:
    """40 true positives, 10 false negatives, 20 false positives, 30 true negatives, 5 unscored."""
    people = [True] * 50 + [False] * 50 + [True] * 5
    judged = [True] * 40 + [False] * 10 + [True] * 20 + [False] * 30 + [None] * 5
    found = agreement(people, judged, range(105))
    assert found.accuracy.estimate.value == pytest.approx(0.70)
    assert found.sensitivity.estimate.value == pytest.approx(0.80)
    assert found.specificity.estimate.value == pytest.approx(0.60)
    assert found.coverage.estimate.value == pytest.approx(100 / 105)
    assert found.f1.value == pytest.approx(2 * 40 / (80 + 20 + 10))
    assert found.kappa.value == pytest.approx((0.70 - 0.50) / (1 - 0.50))
    assert (found.accuracy.estimate.n, found.coverage.estimate.n) == (100, 105)


def test_nothing_scored_is_not_zero() -> None:
    found = agreement([True, False], [None, None], [1, 2])
    assert found.accuracy.estimate.value is None
    assert found.kappa.value is None
    assert found.f1.value is None
    assert found.coverage.estimate.value == 0
    assert agreement([], [], []).accuracy.estimate.value is None


def test_without_any_positive_sensitivity_is_not_told() -> None:
    found = agreement([False] * 10, [False] * 10, range(10))
    assert found.sensitivity.estimate.value is None
    assert found.kappa.value is None
    assert found.specificity.estimate.value == 1
    assert found.specificity.estimate.low < 0.9


def test_rows_that_repeat_a_cluster_tell_no_more() -> None:
    """Each answer ten times over: the interval stays that of the answers."""
    rng = np.random.default_rng(1)
    hits = (rng.random(200) < 0.7).astype(np.float64)
    alone = clustered_share(hits, np.ones(200))
    tenfold = clustered_share(10 * hits, np.full(200, 10.0))
    assert tenfold.effective_n == pytest.approx(alone.effective_n, rel=0.02)
    assert tenfold.estimate.low == pytest.approx(alone.estimate.low, abs=1e-3)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_intervals_cover_the_truth_over_clusters(spread: float) -> None:
    """Sensitivity and kappa of a judge whose accuracy differs by prompt."""
    rng = np.random.default_rng(2)
    num, size, missed = 60, 6, {"sensitivity": 0, "kappa": 0}
    for _ in range(300):
        correct = rng.beta(0.8 * spread, 0.2 * spread, num).repeat(size)
        people = rng.random(num).repeat(size) < 0.5
        judged = np.where(rng.random(num * size) < correct, people, ~people)
        found = agreement(people.tolist(), judged.tolist(), np.arange(num).repeat(size).tolist())
        missed["sensitivity"] += not found.sensitivity.estimate.low <= 0.8 <= found.sensitivity.estimate.high
        missed["kappa"] += not found.kappa.low <= 0.6 <= found.kappa.high
    assert max(missed.values()) / 300 < 0.085, missed  # 95 % asked; 2.8 standard errors of 300 studies


@pytest.mark.parametrize("num", [2, 3, 5, 20])
def test_few_clusters_are_covered_too(num: int) -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(400):
        hits = rng.binomial(30, rng.beta(4, 1, num)).astype(np.float64)
        found = clustered_share(hits, np.full(num, 30.0)).estimate
        missed += not found.low <= 0.8 <= found.high
    assert missed / 400 < 0.08  # 95 % asked; 2.8 standard errors of 400


def test_one_cluster_is_one_row() -> None:
    found = clustered_share(np.array([80.0]), np.array([100.0]))
    assert (found.estimate.n, found.effective_n) == (100, 1.0)
    assert found.estimate.high - found.estimate.low > 0.8


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([True, False, None]), st.integers(0, 3)), max_size=30))
def test_every_interval_holds_its_value(rows: list[tuple[bool, bool | None, int]]) -> None:
    found = agreement([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    shares = [found.accuracy, found.sensitivity, found.specificity, found.coverage]
    for one in [*(share.estimate for share in shares), found.f1, found.kappa]:
        assert -1 <= one.low <= one.high <= 1
        assert one.value is None or one.low <= one.value <= one.high


@pytest.mark.parametrize("num", [10, 40])
def test_kappa_covers_where_few_rows_show_no_error(num: int) -> None:
    """At 3 % errors most draws of ten rows show none; their interval must not be a point."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(150):
        people = rng.random(num) < 0.5
        judged = np.where(rng.random(num) < 0.03, ~people, people)
        found = agreement(people.tolist(), judged.tolist(), range(num)).kappa
        covered += found.value is None or found.low <= 0.94 <= found.high
    assert covered / 150 > 0.9
