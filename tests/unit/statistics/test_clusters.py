"""Prompts in groups: plain statistics where each is alone, honest ones where they resemble each other."""

import itertools

import numpy as np
import pytest

from flipsearch.statistics.intervals import (
    clustered_difference,
    clustered_rate,
    mcnemar_mid_p,
    paired_difference,
    sign_flip_mid_p,
    wilson,
)


def test_prompts_that_are_alone_have_the_plain_intervals() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 30)) < 0.6).tolist()
    alone = [str(number) for number in range(30)]
    assert clustered_rate(first, alone) == wilson(sum(first), 30)
    assert clustered_difference(first, second, alone) == paired_difference(first, second)
    assert clustered_rate([], []) == wilson(0, 0)


def test_copies_of_a_prompt_count_as_one() -> None:
    """Each of 20 prompts four times: no more is known than from the 20."""
    hits, others = [n % 3 == 0 for n in range(20)], [n % 5 == 0 for n in range(20)]
    copies, names = [hit for hit in hits for _ in range(4)], [str(n) for n in range(20) for _ in range(4)]
    once, four = wilson(sum(hits), 20), clustered_rate(copies, names)
    assert (four.count, four.n) == (28, 80)
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.1)
    twice = clustered_difference(copies, [hit for hit in others for _ in range(4)], names)
    alone = paired_difference(hits, others)
    assert twice.value == pytest.approx(alone.value)
    assert twice.high - twice.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert twice.p_value == pytest.approx(alone.p_value)


@pytest.mark.parametrize("sums", [[4, 4, 1, -2], [1, 2, 3], [-3, -1, 2, 0], [2, -2], [0, 0], [1, 1, -1, 0, 1]])
def test_the_test_is_over_all_signs_of_the_clusters(sums: list[int]) -> None:
    observed = abs(sum(sums))
    totals = [
        abs(sum(s * n for s, n in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    expected = np.mean([1.0 if total > observed else 0.5 if total == observed else 0.0 for total in totals])
    assert sign_flip_mid_p(sums) == pytest.approx(expected if any(sums) else 1.0)
    assert sign_flip_mid_p([1] * 9 + [-1] * 2) == mcnemar_mid_p(9, 2)


def test_one_group_tells_nothing() -> None:
    assert clustered_rate([True] * 40, ["same"] * 40).low < 0.25
    difference = clustered_difference([True] * 40, [False] * 40, ["same"] * 40)
    assert difference.low < 0 < difference.value
    assert difference.p_value == 0.5
