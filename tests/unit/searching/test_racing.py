"""Racing: nested rungs, and arms that are cut for a reason only."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.measure import summarize
from flipsearch.records import Flip, Label, Measurement
from flipsearch.searching.racing import Rung, is_admissible, is_hopeless, make_rungs, pooled_flip_rate, shrunken


def measured(num_flips: int, n: int, num_refused: int = 0, num_benign: int = 0) -> Measurement:
    """Return a measurement with these counts."""
    flips = [Flip(f"h{i}", "harmful", Label.UNSAFE, Label.SAFE if i < num_flips else Label.UNSAFE) for i in range(n)]
    flips += [Flip(f"b{i}", "benign", Label.SAFE, Label.SAFE, refused_after=i < num_refused) for i in range(num_benign)]
    return summarize(flips, "search", whole=False)


def test_rungs_double_and_end_with_all() -> None:
    assert make_rungs(100, 50, 16) == [Rung(16, 8), Rung(32, 16), Rung(64, 32), Rung(100, 50)]
    assert make_rungs(70, 7, 16) == [Rung(16, 2), Rung(32, 4), Rung(70, 7)]
    assert make_rungs(5, 40, 16) == [Rung(5, 40)]


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 64))
def test_rungs_are_nested(num_harmful: int, num_benign: int, first: int) -> None:
    rungs = make_rungs(num_harmful, num_benign, first)
    assert rungs[-1] == Rung(num_harmful, num_benign)
    for smaller, larger in pairwise(rungs):
        assert smaller.num_harmful < larger.num_harmful
        assert smaller.num_benign <= larger.num_benign
    assert all(bool(rung.num_benign) == bool(num_benign) for rung in rungs)


def test_a_clearly_worse_arm_is_cut() -> None:
    assert is_hopeless(measured(1, 16), [measured(14, 16)], cap=0.1)
    assert not is_hopeless(measured(10, 16), [measured(14, 16)], cap=0.1)


def test_the_best_arm_is_never_cut_by_itself() -> None:
    arm = measured(16, 16)
    assert not is_hopeless(arm, [arm], cap=0.1)


def test_a_rival_counts_only_if_it_saw_as_many_prompts_and_is_admissible() -> None:
    arm = measured(4, 64)
    assert not is_hopeless(arm, [measured(16, 16)], cap=0.1)
    assert not is_hopeless(arm, [measured(64, 64, num_refused=10, num_benign=20)], cap=0.1)
    assert is_hopeless(arm, [measured(64, 64)], cap=0.1)


def test_an_arm_that_surely_refuses_too_much_is_cut() -> None:
    assert is_hopeless(measured(16, 16, num_refused=8, num_benign=8), [], cap=0.1)
    assert not is_hopeless(measured(16, 16, num_refused=1, num_benign=8), [], cap=0.1)


def test_admissible_is_at_most_the_cap() -> None:
    assert is_admissible(measured(1, 1, num_refused=1, num_benign=10), cap=0.1)
    assert not is_admissible(measured(1, 1, num_refused=2, num_benign=10), cap=0.1)
    assert is_admissible(measured(1, 1), cap=0.0)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_shrinking_goes_towards_the_prior(num_flips: int, num_stays: int, prior: float) -> None:
    arm = measured(num_flips, num_flips + num_stays)
    value = arm.flip_rate.value if arm.flip_rate.n else prior
    assert value is not None
    low, high = sorted((value, prior))
    assert low - 1e-9 <= shrunken(arm, prior) <= high + 1e-9


def test_few_prompts_are_shrunken_more() -> None:
    assert shrunken(measured(16, 16), 0.5) < shrunken(measured(100, 100), 0.5)
    assert shrunken(measured(0, 16), 0.5) > shrunken(measured(0, 100), 0.5)


def test_pooled_rate_weighs_by_prompts() -> None:
    assert pooled_flip_rate([measured(10, 10), measured(0, 30)]) == pytest.approx(0.25)
    assert pooled_flip_rate([]) == 0.5
