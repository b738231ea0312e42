"""Arms that are alike are not all measured to the end, and what is held back is seldom much better."""

import numpy as np
import pytest

from flipsearch.searching.holding import draw_worths, num_kept, promise

NOTHING = np.empty((0, 4000))
ALPHA, TOLERANCE = 0.1, 0.02


def kept(flips: list[tuple[float, float]], *, tolerance: float = TOLERANCE, least: int = 1) -> int:
    worths = draw_worths(flips, [None] * len(flips), 0.1)
    return num_kept(worths, NOTHING, ALPHA, tolerance, least)


def test_one_of_many_well_known_equals_is_enough() -> None:
    assert kept([(9500.0, 500.0)] * 20) == 1
    assert kept([(9500.0, 500.0)] * 20, least=6) == 6


def test_arms_that_may_be_much_better_run_on() -> None:
    assert kept([(90.0, 10.0)] + [(8.0, 2.0)] * 10) > 5
    assert kept([(90.0, 10.0)] + [(80.0, 120.0)] * 10) == 1


def test_without_tolerance_equals_run_on() -> None:
    assert kept([(95.0, 5.0)] * 20, tolerance=0.0) > kept([(95.0, 5.0)] * 20, tolerance=0.05)


def test_what_was_held_before_counts_on() -> None:
    """Nothing that is kept can make good for it: then nothing more is held back."""
    worths = draw_worths([(50.0, 50.0)] * 4, [None] * 4, 0.1)
    assert num_kept(worths, draw_worths([(95.0, 5.0)], [None], 0.1), ALPHA, TOLERANCE, 1) == 4


def test_no_arm_and_one_arm() -> None:
    assert num_kept(NOTHING, NOTHING, ALPHA, TOLERANCE, 3) == 0
    assert kept([(5.0, 5.0)], least=3) == 1


def test_an_arm_over_the_cap_is_worth_nothing() -> None:
    worths = draw_worths([(95.0, 5.0), (60.0, 40.0)], [(900.0, 100.0), None], 0.1)
    assert promise(worths).tolist() == pytest.approx([0.0, 0.6], abs=0.01)
    assert num_kept(worths[::-1], NOTHING, ALPHA, TOLERANCE, 1) == 1


@pytest.mark.parametrize("num_seen", [10, 40])
def test_the_best_held_arm_is_seldom_better(num_seen: int) -> None:
    """300 races of 24 arms whose rates come from the prior that the posteriors use."""
    rng = np.random.default_rng(1)
    a, b, num_wrong, num_held = 8.0, 2.0, 0, 0
    for _ in range(300):
        rates = rng.beta(a, b, 24)
        flips = rng.binomial(num_seen, rates)
        worths = draw_worths([(a + one, b + num_seen - one) for one in flips], [None] * 24, 0.1)
        order = np.argsort(-promise(worths))
        num = num_kept(worths[order], NOTHING, ALPHA, TOLERANCE, 1)
        kept_best, left = rates[order[:num]].max(), rates[order[num:]]
        num_held += len(left)
        num_wrong += len(left) > 0 and left.max() > kept_best + TOLERANCE
    assert num_held > 300
    assert num_wrong / 300 <= ALPHA + 2 * (ALPHA * (1 - ALPHA) / 300) ** 0.5
