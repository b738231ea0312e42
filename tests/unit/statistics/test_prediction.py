"""Rank correlations, their permutation test, and which figure predicts best: against scipy, and at known ends."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from flipsearch.statistics.agreement import behind_best, permutation_p, spearman

FLIPS, HARM = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9], [0.9, 0.8, 0.5, 0.3, 0.2, 0.1]


def test_the_correlation_is_scipys_and_none_for_ties_alone() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(5, size=12).tolist(), rng.normal(size=12).tolist()
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman([1, 1, 1, 1], HARM[:4]) is None
    assert permutation_p([1, 1, 1, 1], HARM[:4]) is None


def test_a_perfect_order_is_as_unlikely_as_its_number_of_permutations() -> None:
    assert spearman(FLIPS, HARM) == -1.0
    assert permutation_p(FLIPS, HARM) == pytest.approx(2 / 720)  # and its reverse
    assert permutation_p(FLIPS, [0.5, 0.2, 0.9, 0.1, 0.8, 0.3]) == pytest.approx(
        _exact(FLIPS, [0.5, 0.2, 0.9, 0.1, 0.8, 0.3])
    )


def _exact(first: list[float], second: list[float]) -> float:
    from itertools import permutations

    values = np.array([spearmanr(order, second).statistic for order in permutations(first)])
    observed = spearmanr(first, second).statistic
    return float(min(1.0, 2 * min((values <= observed + 1e-9).mean(), (values >= observed - 1e-9).mean())))


def test_a_better_figure_is_distinguished_from_noise_and_not_from_itself() -> None:
    rng = np.random.default_rng(0)
    harm = np.linspace(1, 0, 16)
    outcomes = [[value - 0.01, value, value + 0.01] for value in harm]
    figures = {"flips": (-harm).tolist(), "noise": rng.normal(size=16).tolist(), "twin": (1 - harm).tolist()}
    shown = behind_best(figures, "flips", outcomes)
    assert shown["noise"].low > 0
    assert (shown["twin"].value, shown["twin"].low, shown["twin"].high) == (0.0, 0.0, 0.0)
    # Of a figure that predicts in the other direction the strength is compared, not the sign.
    assert behind_best({"flips": figures["flips"], "harm": harm.tolist()}, "flips", outcomes)["harm"].value == 0.0
