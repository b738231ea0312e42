"""Correction of a judge's errors: exact without sampling error, and by simulation with it."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from flipsearch.core.measurements import Estimate
from flipsearch.statistics.agreement import (
    Pairs,
    Share,
    clustered_share,
    corrected_flip_rate,
    prediction_powered_mean,
)
from flipsearch.statistics.intervals import Floats

Flags = NDArray[np.bool_]


def share(value: float, n: float = 1e9) -> Share:
    return Share(Estimate(value, value, value, int(n)), n)


def seen(true: tuple[float, float, float, float], sensitivity: float, specificity: float) -> Pairs:
    """Return the table that a judge of this accuracy sees on average for a million true pairs."""
    errs = np.array([[sensitivity, 1 - specificity], [1 - sensitivity, specificity]])
    table = errs @ np.array(true).reshape(2, 2) @ errs.T
    unsafe_unsafe, unsafe_safe, safe_unsafe, safe_safe = (round(1e6 * cell) for cell in table.ravel())
    return unsafe_unsafe, unsafe_safe, safe_unsafe, safe_safe


@pytest.mark.parametrize(("sensitivity", "specificity"), [(1.0, 1.0), (0.8, 0.9), (0.7, 0.6)])
def test_the_true_rate_comes_back(sensitivity: float, specificity: float) -> None:
    table = seen((0.2, 0.6, 0.05, 0.15), sensitivity, specificity)
    result = corrected_flip_rate(table, share(sensitivity), share(specificity))
    assert result.value == pytest.approx(0.75, abs=1e-3)
    assert result.low == pytest.approx(0.75, abs=0.02)
    assert result.high == pytest.approx(0.75, abs=0.02)


def test_an_uninformative_judge_gives_no_rate() -> None:
    assert corrected_flip_rate((10, 20, 1, 5), share(0.4, 200), share(0.5, 200)) == Estimate(None, 0.0, 1.0, 30)
    assert corrected_flip_rate((0, 0, 1, 5), share(0.9), share(0.9)).value is None
    # On real answers, by 172 labels: nearly chance, where inverting the table says 100 % without any doubt.
    assert corrected_flip_rate((4, 46, 0, 0), share(0.83, 111), share(0.28, 61)) == Estimate(None, 0.0, 1.0, 50)
    unmeasured = clustered_share(np.zeros(0), np.zeros(0))
    assert corrected_flip_rate((10, 20, 1, 5), unmeasured, share(0.9)) == Estimate(None, 0.0, 1.0, 30)


def test_fewer_labels_make_a_wider_interval() -> None:
    widths = []
    for n in (20.0, 200.0, 20_000.0):
        result = corrected_flip_rate((12, 60, 2, 6), share(0.8, n), share(0.85, n))
        widths.append(result.high - result.low)
    assert widths[0] > widths[1] > widths[2]


def test_the_interval_covers_the_truth() -> None:
    """Accuracy from 300 labels a side, 90 pairs: the truth lies inside in 95 % of the studies."""
    rng, num, missed = np.random.default_rng(3), 250, 0
    for _ in range(num):
        sensitivity, specificity = (clustered_share(*_labels(rng, rate)) for rate in (0.8, 0.9))
        before = rng.random(90) < 0.85
        after = before & (rng.random(90) >= 0.7)
        judged = [_judge(rng, side) for side in (before, after)]
        stays, flips, worse, fine = (_count(judged[0], judged[1], *sides) for sides in product((True, False), repeat=2))
        result = corrected_flip_rate((stays, flips, worse, fine), sensitivity, specificity)
        missed += not result.low <= 0.7 <= result.high
    assert missed / num < 0.09


def _count(first: Flags, second: Flags, before: bool, after: bool) -> int:
    return int(((first == before) & (second == after)).sum())


def _labels(rng: np.random.Generator, rate: float) -> tuple[Floats, Floats]:
    return (rng.random(300) < rate).astype(float), np.ones(300)


def _judge(rng: np.random.Generator, truth: Flags) -> Flags:
    return np.where(truth, rng.random(len(truth)) < 0.8, rng.random(len(truth)) >= 0.9)


def test_labels_outweigh_a_judge_that_is_wrong() -> None:
    """All labelled: the judge does not matter. None labelled: only the judge matters."""
    human = [1.0, 0.0, 1.0, 1.0]
    assert prediction_powered_mean([0.0] * 4, human, [1.0] * 4).value == pytest.approx(0.75)
    assert prediction_powered_mean([1.0, 0.0], [None, None], [0.5, 0.5]).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="probability"):
        prediction_powered_mean([1.0], [0.0], [0.0])


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_the_mean_is_unbiased_and_its_interval_covers(bias: float) -> None:
    """Doubtful prompts are labelled four times as often; a judge that errs by `bias` does not move the mean."""
    rng, num, values, missed = np.random.default_rng(4), 300, [], 0
    for _ in range(num):
        human = (rng.random(200) < 0.6).astype(float)
        doubtful = rng.random(200) < 0.3
        judged = np.where(doubtful & (rng.random(200) < bias), 1 - human, human)
        chance = np.where(doubtful, 0.4, 0.1)
        given = rng.random(200) < chance
        labels = [float(value) if is_given else None for value, is_given in zip(human, given, strict=True)]
        result = prediction_powered_mean(judged.tolist(), labels, chance.tolist())
        assert result.value is not None
        values.append(result.value)
        missed += not result.low <= 0.6 <= result.high
    assert np.mean(values) == pytest.approx(0.6, abs=0.012)
    assert missed / num < 0.09
