"""Holm's adjustment: worked by hand, and its promise over simulated families of tests."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.statistics.paired import holm

P_VALUES = st.lists(st.floats(min_value=0, max_value=1), max_size=8)


def test_worked_example() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@given(P_VALUES)
def test_never_below_the_raw_value_and_in_the_same_order(p_values: list[float]) -> None:
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
