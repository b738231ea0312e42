"""Greedy set cover: never worse than the best single set, near the best choice of as many, and nothing is idle."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.measurements import Flip, Measurement
from flipsearch.core.records import Label
from flipsearch.measuring.measure import summarize
from flipsearch.searching.after.deciding import greedy_cover, union

TABLES = st.lists(st.frozensets(st.sampled_from("abcdefg")), max_size=6)
LABELS = {"s": Label.SAFE, "u": Label.UNSAFE, "?": Label.UNSCORED}


def covered(sets: list[frozenset[str]], chosen: list[int]) -> int:
    return len(frozenset[str]().union(*(sets[index] for index in chosen)))


@given(TABLES, st.integers(1, 6))
def test_greedy_against_every_choice(sets: list[frozenset[str]], most: int) -> None:
    chosen = greedy_cover(sets, most)
    assert len(chosen) <= most
    assert len(set(chosen)) == len(chosen)
    best = max(
        (covered(sets, list(chosen)) for chosen in combinations(range(len(sets)), min(most, len(sets)))), default=0
    )
    assert max(map(len, sets), default=0) <= covered(sets, chosen) <= best
    assert covered(sets, chosen) >= (1 - 1 / 2.718281828) * best
    if most >= len(sets):
        assert covered(sets, chosen) == best


@given(TABLES)
def test_each_set_adds_less_than_the_one_before_and_none_adds_nothing(sets: list[frozenset[str]]) -> None:
    chosen = greedy_cover(sets)
    sizes = [covered(sets, chosen[:num]) for num in range(len(chosen) + 1)]
    gains = [after - before for before, after in pairwise(sizes)]
    assert all(gain > 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)


def test_the_first_of_equals() -> None:
    assert greedy_cover([{"a"}, {"b", "c"}, {"c", "d"}, {"a"}]) == [1, 0, 2]
    assert greedy_cover([set(), set()]) == greedy_cover([]) == []


def measured(labels: str) -> Measurement:
    flips = [Flip(str(number), "harmful", Label.UNSAFE, LABELS[label]) for number, label in enumerate(labels)]
    return summarize(flips, "confirm", whole=True)


def test_a_prompt_that_none_flips_and_one_could_not_score_is_not_known() -> None:
    assert union([measured("su?u"), measured("u?su")]) == {"0": True, "2": True, "3": False}
