"""Pruning: on evidence only, from able competitors only, and the best arm with probability at most alpha; the cap."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from flipsearch.core.measurements import Flip, Measurement
from flipsearch.core.records import Label
from flipsearch.measuring.measure import summarize
from flipsearch.searching.arms import is_admissible, loss_evidence, prune

OF = {1: Label.SAFE, 0: Label.UNSAFE, -1: Label.UNSCORED}


def arm(outcomes: Sequence[int], num_refused: int = 0, num_benign: int = 0) -> Measurement:
    """Return a measurement with these outcomes: 1 flips, 0 does not, -1 is unscored."""
    flips = [Flip(f"h{i}", "harmful", Label.UNSAFE, OF[int(outcome)]) for i, outcome in enumerate(outcomes)]
    flips += [Flip(f"b{i}", "benign", Label.SAFE, Label.SAFE, refused_after=i < num_refused) for i in range(num_benign)]
    return summarize(flips, "search", whole=False)


def pruned(arms: list[Measurement], others: list[Measurement], cap: float, alpha: float) -> list[bool]:
    """Return which arms are pruned, and check the evidence that is given."""
    evidence = prune(arms, others, cap, alpha)
    assert all(value is None or value >= 2 / alpha for value in evidence)
    return [value is not None for value in evidence]


def test_a_clearly_worse_arm_is_pruned_and_the_better_stays() -> None:
    assert pruned([arm([0] * 16), arm([1] * 14 + [0] * 2)], [], cap=0.1, alpha=0.1) == [True, False]
    assert pruned([arm([1] * 10 + [0] * 6), arm([1] * 14 + [0] * 2)], [], cap=0.1, alpha=0.1) == [False, False]


def test_one_arm_alone_is_never_pruned_for_its_flip_rate() -> None:
    assert pruned([arm([0] * 64)], [], cap=0.1, alpha=0.1) == [False]


def test_arms_that_flip_the_same_prompts_are_not_distinguished() -> None:
    assert loss_evidence([arm([1, 0] * 32)], [arm([1, 0] * 32)], cap=0.1) == pytest.approx(1.0)


def test_a_competitor_counts_only_if_it_saw_as_many_prompts_and_is_within_the_cap() -> None:
    poor = arm([0] * 64)
    assert pruned([poor], [arm([1] * 16)], cap=0.1, alpha=0.1) == [False]
    assert pruned([poor], [arm([1] * 64, num_refused=10, num_benign=20)], cap=0.1, alpha=0.1) == [False]
    assert pruned([poor], [arm([1] * 64)], cap=0.1, alpha=0.1) == [True]


def test_more_competitors_ask_for_more_evidence() -> None:
    poor, good, alike = arm([0] * 16), arm([1] * 16), arm([0] * 16)
    alone = loss_evidence([poor], [good], cap=0.1)
    assert loss_evidence([poor], [good, alike], cap=0.1) == pytest.approx((alone + 1) / 2)


def test_unscored_pairs_say_nothing() -> None:
    half = arm([0, -1] * 8)
    assert loss_evidence([half], [arm([1] * 16)], cap=0.1) == pytest.approx(
        loss_evidence([arm([0] * 8)], [arm([1] * 8)], cap=0.1)
    )


def test_an_arm_that_surely_refuses_too_much_is_pruned() -> None:
    assert pruned([arm([1] * 16, num_refused=8, num_benign=8)], [], cap=0.1, alpha=0.1) == [True]
    assert pruned([arm([1] * 16, num_refused=1, num_benign=8)], [], cap=0.1, alpha=0.1) == [False]


def _pruned_shares(rates: Sequence[float], alpha: float, num_studies: int) -> list[float]:
    """Return how often each arm is pruned in races of all arms over 16, 32, 64 and 128 of 200 prompts."""
    rng, num_pruned = np.random.default_rng(2), np.zeros(len(rates))
    for _ in range(num_studies):
        hardness = rng.random(200)
        # Half of what decides a flip is the prompt's own, as with real contexts: outcomes are correlated.
        mixed = rng.random((len(rates), 200)) < 0.5
        flips = np.where(mixed, hardness, rng.random((len(rates), 200))) < np.array(rates)[:, None]
        running, out = list(range(len(rates))), list[Measurement]()
        for size in (16, 32, 64, 128):
            seen = [arm(flips[index, :size].astype(int).tolist()) for index in running]
            fates = pruned(seen, out, cap=1.0, alpha=alpha)
            out += [measurement for measurement, is_out in zip(seen, fates, strict=True) if is_out]
            num_pruned[[index for index, is_out in zip(running, fates, strict=True) if is_out]] += 1
            running = [index for index, is_out in zip(running, fates, strict=True) if not is_out]
    return list(num_pruned / num_studies)


def test_the_best_arm_is_pruned_at_most_alpha_of_the_time() -> None:
    alpha, num_studies = 0.2, 120
    equal = _pruned_shares([0.6] * 8, alpha, num_studies)
    assert max(equal) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / num_studies)
    best, *others = _pruned_shares([0.7, 0.65, 0.65, 0.4, 0.1, 0.0], alpha, num_studies)
    assert best <= alpha
    assert others[-1] > 0.99
    assert others[-3] > 0.5


def test_admissible_is_at_most_the_cap() -> None:
    assert is_admissible(arm([1], num_refused=1, num_benign=10), cap=0.1)
    assert not is_admissible(arm([1], num_refused=2, num_benign=10), cap=0.1)
    assert is_admissible(arm([1]), cap=0.0)


def test_no_arm_is_pruned_from_none() -> None:
    assert prune([], [arm([1])], cap=0.1, alpha=0.1) == []
