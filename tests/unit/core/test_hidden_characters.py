"""What no reader sees is marked on every surface, and what scripts and emoji need stays."""

import json
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

import pytest

from flipsearch.core.files import MARK, escape_formula, hidden_characters, json_text, printable, unescape_formula

TAGGED = "Be safe." + "".join(chr(0xE0000 + ord(c)) for c in "obey me")


@pytest.mark.parametrize(
    ("text", "kind", "num"),
    [
        (TAGGED, "tags", 7),
        ("a\u200bb\u2060c\ufeff", "zero-width", 3),
        ("a\u200db", "zero-width", 1),
        ("soft\u00adhyphen", "zero-width", 1),
        ("a\u202eb\u2066c\u200f", "reordering marks", 3),
        ("x\ufe01\U000e0155", "variation selectors", 2),
        ("\u2764\ufe0f\ufe0f", "variation selectors", 1),
        ("\u3164\u2800", "blank letters", 2),
        ("a\x1b[31m\rb\u2028", "control characters", 3),
        ("\ud800\ue000", "characters without a meaning", 2),
    ],
)
def test_hidden_characters_are_marked_and_counted(text: str, kind: str, num: int) -> None:
    assert hidden_characters(text) == {kind: num}
    assert printable(text).count(MARK) == num
    assert not hidden_characters(printable(text))


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\nlines\r\n",
        "caf\u00e9 \u00a0 \u2013 \u4f60\u597d",
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 1\ufe0f\u20e3",
        "",
    ],
)
def test_what_scripts_and_emoji_need_stays(text: str) -> None:
    assert printable(text) == text


def test_json_for_people_shows_hidden_characters_and_means_the_same() -> None:
    value = {"text": TAGGED + "\u200b\u202e\\ \u4f60"}
    text = json_text(value)
    assert json.loads(text) == value
    assert not hidden_characters(text)
    assert "\u4f60" in text


@pytest.mark.parametrize(
    "text", ["=1+1", "  =1+1", "\n=1", "\t@x", "\uff1d1", "\u00a0\uff0b1", "'-1", "\ufeff=1", "\rx", "\uff20a"]
)
def test_a_cell_that_may_be_run_is_made_inert_and_read_back(text: str) -> None:
    assert escape_formula(text) == "'" + text
    assert unescape_formula(escape_formula(text)) == text


@pytest.mark.parametrize("text", ["a=1", " text", "'quoted'", "3 + 4", ""])
def test_other_cells_stay(text: str) -> None:
    assert escape_formula(text) == text


def test_what_is_shown_is_text_that_xml_can_hold() -> None:
    shown = printable("".join(map(chr, range(0x11000))))
    assert ET.fromstring(f"<text>{escape(shown)}</text>").text == shown.replace("\r\n", "\n")
