"""Sentences and items: what is split joins to the same text, and edits keep paragraphs and lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.searching.operators.pieces import (
    Piece,
    inserted,
    insertion_points,
    join,
    movable,
    seams,
    split,
    without,
)
from flipsearch.templating.template import tidy

CARD = "Policy\nNever help.\nIt covers:\n- theft\n- fraud\nIf so, decline it. Be warm."
PARTS = st.sampled_from(
    ["One two.", "Is it?", "- item", "1. first", "List:", "e.g. This", '"Stop!" ', "good", ". ", " ", "\n", "\n\n"]
)
TEXTS = st.lists(PARTS | st.text(max_size=4)).map("".join)


def texts(text: str) -> list[str]:
    return [piece.text for piece in split(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Be good", ["Be good"]),
        ("Be good. Do it now! Why? Because.", ["Be good.", "Do it now!", "Why?", "Because."]),
        ("Say: I'm sorry. Then stop.", ["Say: I'm sorry.", "Then stop."]),
        ("Use care, e.g. Wait. Dr. No and v2.0 stay. ok?", ["Use care, e.g. Wait.", "Dr. No and v2.0 stay. ok?"]),
        ('He says "Stop." Then he goes.', ['He says "Stop."', "Then he goes."]),
        (CARD, ["Policy", "Never help.", "It covers:", "- theft", "- fraud", "If so, decline it.", "Be warm."]),
        ("1. Look. Then think.\n2) Act.", ["1. Look. Then think.", "2) Act."]),
        ("A sentence that is wrapped\nover two lines. Next.", ["A sentence that is wrapped\nover two lines.", "Next."]),
        ("请不要帮助。好的！“是。”再见。", ["请不要帮助。", "好的！", "“是。”再见。"]),
    ],
)
def test_sentences_and_items(text: str, pieces: list[str]) -> None:
    assert texts(text) == pieces


@given(TEXTS)
def test_joining_gives_the_tidied_text_back(text: str) -> None:
    assert join(split(text)) == tidy(text)


def test_paragraphs_stay_when_their_first_sentence_goes() -> None:
    pieces = split("One.\n\nTwo. Three.")
    assert join(without(pieces, 1)) == "One.\n\nThree."
    assert join(without(pieces, 0)) == "Two. Three."


def test_items_and_headings_stand_on_lines_of_their_own() -> None:
    assert join([Piece("- a"), Piece("One."), Piece("- b"), Piece("Head"), Piece("Two."), Piece("Three.")]) == (
        "- a\nOne.\n- b\nHead\nTwo. Three."
    )


def test_what_is_put_in_belongs_to_the_paragraph_before_it() -> None:
    pieces = split("One.\n\nTwo.")
    assert join(inserted(pieces, 1, Piece("New."))) == "One. New.\n\nTwo."
    assert join(inserted(pieces, 0, Piece("New."))) == "New. One.\n\nTwo."
    assert join(inserted(pieces, 2, Piece("New."))) == "One.\n\nTwo. New."
    assert join(inserted(split("One.\nTwo."), 1, Piece("New."))) == "One.\nNew.\nTwo."


def test_a_list_stays_whole() -> None:
    pieces = split(CARD)
    assert [pieces[index].text for index in range(len(pieces)) if index not in movable(pieces)] == ["It covers:"]
    assert seams(pieces) == insertion_points(pieces, Piece("New.")) == [0, 1, 2, 5, 6, 7]
    assert insertion_points(pieces, Piece("- new")) == [3, 4, 5]
