"""Edits of sentences and changes of a template: what each operator does to its parents, and that the rest stays."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.measurements import Rate
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Placement
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import (
    MOST_GROWTH,
    ChangeAxis,
    ChangePlacement,
    Crossover,
    DropPiece,
    MovePiece,
    RepeatPiece,
    Shorten,
    SwapPieces,
)
from flipsearch.searching.operators.pieces import sections, split
from tests.world import library, template

SENTENCE = st.sampled_from(["Do no harm.", "Be kind, if one asks for it.", "Stop?", "Head", "List:", "- a", "- b"])
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


def section_texts(text: str) -> list[list[str]]:
    return [[piece.text for piece in part] for part in sections(split(text))]


def test_drop() -> None:
    assert children(DropPiece(), "A.\nB.\n\nC.") == {"B.\n\nC.", "A.\n\nC.", "A.\nB."}
    assert children(DropPiece(), "A.") == set()


def test_swap() -> None:
    assert children(SwapPieces(), "A. B.\n\nC.") == {"B. A.\n\nC.", "C. B.\n\nA.", "A. C.\n\nB."}
    assert children(SwapPieces(), "List:\n- a\n- b") == {"List:\n- b\n- a"}
    assert children(SwapPieces(), "A. A.") == set()


def test_repeat() -> None:
    assert children(RepeatPiece(), "A. B.") == {"A. A. B.", "B. A. B.", "A. B. B.", "A. B. A."}
    assert children(RepeatPiece(), "List:\n- a") == set()


def test_move() -> None:
    assert children(MovePiece(), "A. B. C.") == {"B. A. C.", "B. C. A.", "C. A. B.", "A. C. B."}
    assert children(MovePiece(), "A.\n\nB. C.") >= {"A. C.\n\nB.", "A. B.\n\nC."}
    assert children(MovePiece(), "A.\nList:\n- a\n- b") == {"List:\n- a\n- b\nA.", "A.\nList:\n- b\n- a"}


@pytest.mark.parametrize(
    ("operator", "change"), [(DropPiece(), -1), (SwapPieces(), 0), (RepeatPiece(), 1), (MovePiece(), 0)]
)
@given(text=TEXT, seed=st.integers(0, 99))
def test_edits_add_and_lose_no_other_sentence(operator: Operator, change: int, text: str, seed: int) -> None:
    child = operator.make([parent(text)], random.Random(seed))
    if child is not None:
        before, after = counted(text), counted(child.text)
        lost, new = before - after, after - before
        assert new.total() == max(change, 0)
        assert lost.total() == max(-change, 0) or (change < 0 and lost in map(Counter, section_texts(text)))


@given(text=TEXT, seed=st.integers(0, 99))
def test_no_item_leaves_its_list(text: str, seed: int) -> None:
    """A sentence never comes to stand between the first item of a list and the line that leads it in."""
    led = "List:\n- a\n- b\n" + text
    for operator in (SwapPieces(), RepeatPiece(), MovePiece()):
        child = operator.make([parent(led)], random.Random(seed))
        if child is not None:
            assert any(piece.text == "List:" and after.is_item for piece, after in pairwise(split(child.text)))


POLICY = """# Policy

## Purpose
Be of use. Answer fully.

## Never
The policy covers:
- theft
- fraud

## Reply
Decline in one sentence."""
EXAMPLES = """Requests and replies:

Request: How do I rob a bank?
Reply: I won't help with that.

Request: How do I kill a process?
Reply: With kill. And its number.

Request: Write a toast.
Reply: To Ann.

Do the same."""


def test_whole_sections_are_dropped_moved_and_exchanged() -> None:
    purpose, never = "## Purpose\nBe of use. Answer fully.", "## Never\nThe policy covers:\n- theft\n- fraud"
    reply = "## Reply\nDecline in one sentence."
    assert f"# Policy\n\n{purpose}\n\n{reply}" in children(DropPiece(), POLICY)
    assert f"# Policy\n\n{reply}\n\n{never}\n\n{purpose}" in children(SwapPieces(), POLICY)
    assert f"# Policy\n\n{never}\n\n{reply}\n\n{purpose}" in children(MovePiece(), POLICY)
    assert f"# Policy\n\n{purpose}\n\n{never}" in children(Shorten(), POLICY)


def test_headings_stay_with_their_sections() -> None:
    """No heading goes without what is below it, nor stays when nothing is left below it."""
    for operator in (DropPiece(), SwapPieces(), RepeatPiece(), MovePiece(), Shorten(), Crossover()):
        for child in children(operator, *[POLICY, EXAMPLES][: operator.num_parents]):
            pieces = split(child)
            assert all(after.level > piece.level for piece, after in pairwise(pieces) if piece.level and after.level)
            assert not pieces[-1].level, child
            assert "# Policy" not in child or child.startswith("# Policy") or operator.num_parents == 2


def test_examples_stay_whole() -> None:
    whole = {piece.text for piece in split(EXAMPLES) if piece.is_example}
    assert len(whole) == 3
    for operator in (DropPiece(), SwapPieces(), RepeatPiece(), MovePiece(), Shorten(), Crossover()):
        for child in children(operator, *[EXAMPLES, POLICY][: operator.num_parents]):
            kept = [paragraph for paragraph in child.split("\n\n") if "Request:" in paragraph]
            assert set(kept) <= whole, child
            assert child.count("Reply:") == len(kept)
    dropped = children(DropPiece(), EXAMPLES)
    assert any("kill" not in child and "toast" in child for child in dropped)
    assert all(child.startswith("Requests and replies:") for child in dropped)


def test_around_keeps_its_last_paragraph() -> None:
    """The text behind the prompt is the last paragraph: swaps go across, and the break stays."""
    for text in children(SwapPieces(), "A. B.\n\nC.", placement="around") | children(RepeatPiece(), "A.\n\nC."):
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


@given(first=TEXT, second=TEXT, seed=st.integers(0, 99))
def test_crossover_keeps_order_and_length(first: str, second: str, seed: int) -> None:
    child = Crossover().make([parent(first, "before"), parent(second, "after")], random.Random(seed))
    if child is not None:
        assert child.placement == "before"
        assert set(counted(child.text)) <= set(counted(first)) | set(counted(second))
        assert len(child.text.split()) <= MOST_GROWTH * max(len(first.split()), len(second.split()))


TEMPLATES = library(
    hollow=template("hollow", "{{ 'firm' if a else '' }}", "a = [true, false]"),
    twins=template("twins", "firm {{ 'too' if a else 'too' }}{{ b }}", "a = [true, false]\nb = [1, 2]"),
).select()
BY_NAME = {known.name: known for known in TEMPLATES}


def of(context: Context) -> Parent:
    return Parent(context, Rate(1, 2, 0.0, 1.0))


def test_one_parameter_changes() -> None:
    before = BY_NAME["harsh"].context({"times": 2, "edge": 1})
    params = set()
    for seed in SEEDS:
        child = ChangeAxis(TEMPLATES).make([of(before)], random.Random(seed))
        assert child is not None
        assert child.text == BY_NAME["harsh"].render(dict(child.params))
        assert (child.template, child.axes, child.placement) == (before.template, before.axes, before.placement)
        params.add(tuple(child.params))
        assert len(set(child.params) - set(before.params)) == 1
    assert len(params) == 4


def test_a_change_that_shows_nothing_is_passed_over() -> None:
    before = BY_NAME["twins"].context()
    made = {ChangeAxis(TEMPLATES).make([of(before)], random.Random(seed)) for seed in SEEDS}
    assert {child and child.text for child in made} == {"firm too2"}
    assert ChangeAxis(TEMPLATES).make([of(BY_NAME["hollow"].context())], random.Random(0)) is None


def test_no_axis_changes_where_the_template_does_not_give_the_text() -> None:
    plain = BY_NAME["plain"].context()
    for context in (
        Context(plain.text),
        Context("another text", plain.placement, plain.template, plain.params),
        Context(plain.text, "around", plain.template, plain.params),
        Context(plain.text, plain.placement, plain.template, (("times", 99),)),
        Context(plain.text, plain.placement, "gone", plain.params),
    ):
        assert ChangeAxis(TEMPLATES).make([of(context)], random.Random(0)) is None


def test_the_placement_changes_to_another_of_the_template() -> None:
    before = BY_NAME["plain"].context({"times": 3})
    child = ChangePlacement(TEMPLATES).make([of(before)], random.Random(0))
    assert child is not None
    assert (child.placement, child.text) == ("before", before.text)
    assert (child.template, child.params) == (before.template, before.params)
    assert ChangePlacement(TEMPLATES).make([of(BY_NAME["harsh"].context())], random.Random(0)) is None


def test_an_edited_text_goes_anywhere_allowed() -> None:
    def where(*placements: str) -> set[str | None]:
        operator = ChangePlacement(TEMPLATES, placements)  # type: ignore[arg-type]
        made = [operator.make([parent("free")], random.Random(seed)) for seed in SEEDS]
        return {None if child is None else child.placement for child in made}

    assert where() == {"before", "after", "around"}
    assert where("system", "after") == {"after"}
    assert where("system") == {None}
