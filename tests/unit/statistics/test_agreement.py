"""Agreement of a judge with human labels: known tables by hand, intervals by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.statistics.agreement import agreement, clustered_share


def test_a_table_by_hand() -> None:
    """40 true positives, 10 false negatives, 20 false positives, 30 true negatives, 5 unscored."""
    human = [True] * 50 + [False] * 50 + [True] * 5
    judged = [True] * 40 + [False] * 10 + [True] * 20 + [False] * 30 + [None] * 5
    result = agreement(human, judged, range(105))
    assert result.accuracy.estimate.value == pytest.approx(0.70)
    assert result.sensitivity.estimate.value == pytest.approx(0.80)
    assert result.specificity.estimate.value == pytest.approx(0.60)
    assert result.coverage.estimate.value == pytest.approx(100 / 105)
    assert result.f1.value == pytest.approx(2 * 40 / (80 + 20 + 10))
    assert result.kappa.value == pytest.approx((0.70 - 0.50) / (1 - 0.50))
    assert (result.accuracy.estimate.n, result.coverage.estimate.n) == (100, 105)


def test_nothing_scored_is_not_zero() -> None:
    result = agreement([True, False], [None, None], [1, 2])
    assert result.accuracy.estimate.value is None
    assert result.kappa.value is None
    assert result.f1.value is None
    assert result.coverage.estimate.value == 0
    assert agreement([], [], []).accuracy.estimate.value is None


def test_without_any_positive_there_is_no_sensitivity() -> None:
    result = agreement([False] * 10, [False] * 10, range(10))
    assert result.sensitivity.estimate.value is None
    assert result.kappa.value is None
    assert result.specificity.estimate.value == 1
    assert result.specificity.estimate.low < 0.9


def test_rows_that_repeat_a_cluster_add_no_information() -> None:
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
    for _ in range(150):
        correct = rng.beta(0.8 * spread, 0.2 * spread, num).repeat(size)
        human = rng.random(num).repeat(size) < 0.5
        judged = np.where(rng.random(num * size) < correct, human, ~human)
        result = agreement(human.tolist(), judged.tolist(), np.arange(num).repeat(size).tolist())
        missed["sensitivity"] += not result.sensitivity.estimate.low <= 0.8 <= result.sensitivity.estimate.high
        missed["kappa"] += not result.kappa.low <= 0.6 <= result.kappa.high
    assert max(missed.values()) / 150 < 0.1, missed  # 95 % expected; 2.8 standard errors of 150 studies


@pytest.mark.parametrize("num", [2, 3, 5, 20])
def test_few_clusters_are_covered_too(num: int) -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(400):
        hits = rng.binomial(30, rng.beta(4, 1, num)).astype(np.float64)
        result = clustered_share(hits, np.full(num, 30.0)).estimate
        missed += not result.low <= 0.8 <= result.high
    assert missed / 400 < 0.08  # 95 % expected; 2.8 standard errors of 400


def test_one_cluster_is_one_row() -> None:
    result = clustered_share(np.array([80.0]), np.array([100.0]))
    assert (result.estimate.n, result.effective_n) == (100, 1.0)
    assert result.estimate.high - result.estimate.low > 0.8


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([True, False, None]), st.integers(0, 3)), max_size=30))
def test_every_interval_holds_its_value(rows: list[tuple[bool, bool | None, int]]) -> None:
    result = agreement([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    shares = [result.accuracy, result.sensitivity, result.specificity, result.coverage]
    for first in [*(share.estimate for share in shares), result.f1, result.kappa]:
        assert -1 <= first.low <= first.high <= 1
        assert first.value is None or first.low <= first.value <= first.high


@pytest.mark.parametrize("num", [10, 40])
def test_kappa_covers_where_few_rows_show_no_error(num: int) -> None:
    """At 3 % errors most draws of ten rows show none; their interval must not be a point."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(150):
        human = rng.random(num) < 0.5
        judged = np.where(rng.random(num) < 0.03, ~human, human)
        result = agreement(human.tolist(), judged.tolist(), range(num)).kappa
        covered += result.value is None or result.low <= 0.94 <= result.high
    assert covered / 150 > 0.9
