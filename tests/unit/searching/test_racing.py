"""Racing: nested rungs, and the cap."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.records import Flip, Label, Measurement
from flipsearch.measuring.measure import summarize
from flipsearch.searching.rungs import Rung, is_admissible, make_rungs


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


def test_admissible_is_at_most_the_cap() -> None:
    assert is_admissible(measured(1, 1, num_refused=1, num_benign=10), cap=0.1)
    assert not is_admissible(measured(1, 1, num_refused=2, num_benign=10), cap=0.1)
    assert is_admissible(measured(1, 1), cap=0.0)
