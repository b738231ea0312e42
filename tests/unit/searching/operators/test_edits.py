"""Drop, swap, repeat, move, shorten, crossover: what each does to the sentences of its parents."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Placement, Rate
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import MOST_GROWTH, Crossover, Drop, Move, Repeat, Swap
from flipsearch.searching.operators.pieces import split
from flipsearch.searching.operators.shorten import Shorten

SENTENCE = st.sampled_from(["Do no harm.", "Be kind, whoever asks you for it.", "Stop?", "Head", "List:", "- a", "- b"])
TEXT = st.lists(st.tuples(SENTENCE, st.sampled_from(["\n", "\n\n"])), min_size=1, max_size=8).map(
    lambda parts: "".join(sentence + gap for sentence, gap in parts)
)
SEEDS = range(40)


def parent(text: str, placement: Placement = "system") -> Parent:
    return Parent(Context(text, placement), Rate(1, 2, 0.0, 1.0))


def children(operator: Operator, *texts: str, placement: Placement = "system") -> set[str]:
    """Return the texts of all children for many seeds."""
    made = [operator.make([parent(text, placement) for text in texts], random.Random(seed)) for seed in SEEDS]
    return {child.text for child in made if child is not None}


def counted(text: str) -> Counter[str]:
    return Counter(piece.text for piece in split(text))


def test_drop() -> None:
    assert children(Drop(), "A.\nB.\n\nC.") == {"B.\n\nC.", "A.\n\nC.", "A.\nB."}
    assert children(Drop(), "A.") == set()


def test_swap() -> None:
    assert children(Swap(), "A. B.\n\nC.") == {"B. A.\n\nC.", "C. B.\n\nA.", "A. C.\n\nB."}
    assert children(Swap(), "List:\n- a\n- b") == {"List:\n- b\n- a"}
    assert children(Swap(), "A. A.") == set()


def test_repeat() -> None:
    assert children(Repeat(), "A. B.") == {"A. A. B.", "B. A. B.", "A. B. B.", "A. B. A."}
    assert children(Repeat(), "List:\n- a") == set()


def test_move() -> None:
    assert children(Move(), "A. B. C.") == {"B. A. C.", "B. C. A.", "C. A. B.", "A. C. B."}
    assert children(Move(), "A.\n\nB. C.") >= {"A. C.\n\nB.", "A. B.\n\nC."}
    assert children(Move(), "A.\nList:\n- a\n- b") == {"List:\n- a\n- b\nA.", "A.\nList:\n- b\n- a"}


@pytest.mark.parametrize(("operator", "change"), [(Drop(), -1), (Swap(), 0), (Repeat(), 1), (Move(), 0)])
@given(text=TEXT, seed=st.integers(0, 99))
def test_edits_add_and_lose_no_other_sentence(operator: Operator, change: int, text: str, seed: int) -> None:
    child = operator.make([parent(text)], random.Random(seed))
    if child is not None:
        before, after = counted(text), counted(child.text)
        lost, new = before - after, after - before
        assert (lost.total(), new.total()) == (max(-change, 0), max(change, 0))


@given(text=TEXT, seed=st.integers(0, 99))
def test_no_item_leaves_its_list(text: str, seed: int) -> None:
    """A sentence never comes to stand between the first item of a list and the line that leads it in."""
    led = "List:\n- a\n- b\n" + text
    for operator in (Swap(), Repeat(), Move()):
        child = operator.make([parent(led)], random.Random(seed))
        if child is not None:
            assert any(one.text == "List:" and other.is_item for one, other in pairwise(split(child.text)))


def test_around_keeps_its_last_paragraph() -> None:
    """The text behind the prompt is the last paragraph: swaps go across, and the break stays."""
    for text in children(Swap(), "A. B.\n\nC.", placement="around") | children(Repeat(), "A.\n\nC."):
        assert text.count("\n\n") == 1


def test_shorten_takes_the_least_that_is_enough() -> None:
    text = "Never help with harm, whatever reason is given. Think first. Be kind to all people who ask."
    assert children(Shorten([0.1]), text) == {
        "Never help with harm, whatever reason is given. Be kind to all people who ask.",
        "Never help with harm. Think first. Be kind to all people who ask.",
        "Never help with harm, whatever reason is given. Think first.",
    }
    assert all(len(child.split()) <= 8 for child in children(Shorten([0.5]), text))


def test_shorten_leaves_no_half_sentence() -> None:
    text = "If you notice that it is harmful, stop. Before you answer, think. Only then help."
    assert all(counted(child) < counted(text) for child in children(Shorten(), text))


def test_shorten_does_not_empty_a_text() -> None:
    assert children(Shorten(), "Be good.") == set()
    assert children(Shorten(), "") == set()
    assert children(Shorten([0.1]), "Never help with harm, whatever is said.") == {"Never help with harm."}


@pytest.mark.parametrize("strengths", [[], [0.0], [1.0]])
def test_shorten_refuses_strengths_that_are_none(strengths: list[float]) -> None:
    with pytest.raises(ValueError, match="strengths between 0 and 1"):
        Shorten(strengths)


@given(text=TEXT, strength=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_shorten_falls_by_its_strength(text: str, strength: float, seed: int) -> None:
    child = Shorten([strength]).make([parent(text)], random.Random(seed))
    assert child is None or len(child.text.split()) <= (1 - strength) * len(text.split())


def test_crossover_joins_without_repeats() -> None:
    made = children(Crossover(), "A one two. B three four.", "C five six. B THREE four!")
    assert {"A one two. B three four.\nC five six.", "C five six. B THREE four!\nA one two."} <= made
    assert all(len([w for w in text.lower().split() if w == "three"]) <= 1 for text in made)


def test_crossover_of_the_same_is_none() -> None:
    assert children(Crossover(), "A.", "a") <= {"a"}
    assert children(Crossover(), "A.", "") == set()


@given(one=TEXT, other=TEXT, seed=st.integers(0, 99))
def test_crossover_keeps_order_and_length(one: str, other: str, seed: int) -> None:
    child = Crossover().make([parent(one, "before"), parent(other, "after")], random.Random(seed))
    if child is not None:
        assert child.placement == "before"
        assert set(counted(child.text)) <= set(counted(one)) | set(counted(other))
        assert len(child.text.split()) <= MOST_GROWTH * max(len(one.split()), len(other.split()))
