"""Arms that are alike are not all measured to the end, and what is stopped early is seldom much better."""

import numpy as np
import pytest

from flipsearch.searching.early_stopping import draw_utilities, num_to_promote

NOTHING = np.empty((0, 4000))
ALPHA, TOLERANCE = 0.1, 0.02


def promoted(flips: list[tuple[float, float]], *, tolerance: float = TOLERANCE, least: int = 1) -> int:
    utilities = draw_utilities(flips, [None] * len(flips), 0.1)
    return num_to_promote(utilities, NOTHING, ALPHA, tolerance, least)


def test_one_of_many_well_known_equals_is_enough() -> None:
    assert promoted([(9500.0, 500.0)] * 20) == 1
    assert promoted([(9500.0, 500.0)] * 20, least=6) == 6


def test_arms_that_may_be_much_better_run_on() -> None:
    assert promoted([(90.0, 10.0)] + [(8.0, 2.0)] * 10) > 5
    assert promoted([(90.0, 10.0)] + [(80.0, 120.0)] * 10) == 1


def test_without_tolerance_equals_run_on() -> None:
    assert promoted([(95.0, 5.0)] * 20, tolerance=0.0) > promoted([(95.0, 5.0)] * 20, tolerance=0.05)


def test_what_was_stopped_before_still_counts() -> None:
    """Nothing that is promoted can make good for it: then nothing more is stopped."""
    utilities = draw_utilities([(50.0, 50.0)] * 4, [None] * 4, 0.1)
    assert num_to_promote(utilities, draw_utilities([(95.0, 5.0)], [None], 0.1), ALPHA, TOLERANCE, 1) == 4


def test_no_arm_and_one_arm() -> None:
    assert num_to_promote(NOTHING, NOTHING, ALPHA, TOLERANCE, 3) == 0
    assert promoted([(5.0, 5.0)], least=3) == 1


def test_an_arm_over_the_cap_has_no_utility() -> None:
    utilities = draw_utilities([(95.0, 5.0), (60.0, 40.0)], [(900.0, 100.0), None], 0.1)
    assert utilities.clip(min=0.0).mean(axis=1).tolist() == pytest.approx([0.0, 0.6], abs=0.01)
    assert num_to_promote(utilities[::-1], NOTHING, ALPHA, TOLERANCE, 1) == 1


@pytest.mark.parametrize("num_seen", [10, 40])
def test_the_best_stopped_arm_is_seldom_better(num_seen: int) -> None:
    """300 races of 24 arms whose rates come from the prior that the posteriors use."""
    rng = np.random.default_rng(1)
    a, b, num_wrong, num_stopped = 8.0, 2.0, 0, 0
    for _ in range(300):
        rates = rng.beta(a, b, 24)
        flips = rng.binomial(num_seen, rates)
        utilities = draw_utilities([(a + count, b + num_seen - count) for count in flips], [None] * 24, 0.1)
        order = np.argsort(-utilities.clip(min=0.0).mean(axis=1))
        num = num_to_promote(utilities[order], NOTHING, ALPHA, TOLERANCE, 1)
        best_promoted, left = rates[order[:num]].max(), rates[order[num:]]
        num_stopped += len(left)
        num_wrong += len(left) > 0 and left.max() > best_promoted + TOLERANCE
    assert num_stopped > 300
    assert num_wrong / 300 <= ALPHA + 2 * (ALPHA * (1 - ALPHA) / 300) ** 0.5
