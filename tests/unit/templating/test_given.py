"""Contexts that the user names: texts, files, cards and templates."""

import json
from pathlib import Path

import pytest

from flipsearch.core.errors import ConfigError, PluginError
from flipsearch.settings import library_for
from flipsearch.templating.library import CARD_VERSION, given_cards, given_contexts, sealed


@pytest.mark.parametrize("named", ["best.txt", "best.json"])
def test_a_card_of_another_version_is_refused_even_beside_its_text(tmp_path: Path, named: str) -> None:
    card = {"text": "Be safe.", "placement": "system", "card_version": CARD_VERSION - 1}
    (tmp_path / "best.txt").write_text("Be safe.\n", encoding="utf-8")
    (tmp_path / "best.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a context card of version {CARD_VERSION - 1}, expected {CARD_VERSION}"):
        given_cards(str(tmp_path / named))


EDITED = sealed({"text": "Be safe.", "placement": "system", "model": "mine", "card_version": CARD_VERSION})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"notes": 1}', "not a context card: text: Field required"),
        ('{"text": "Be safe.", "placem', "not a context card: file: Invalid JSON"),
        (json.dumps({**EDITED, "model": "another"}), "the context card was edited"),
        (json.dumps({key: value for key, value in EDITED.items() if key != "card_id"}), "the context card was edited"),
        (json.dumps({"text": "Be safe.", "placement": "nowhere"}), "not a context card: placement"),
    ],
)
def test_what_lies_beside_a_text_and_is_not_its_card_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "best.txt").write_text("Be safe.\n", encoding="utf-8")
    (tmp_path / "best.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{says}.* It lies beside '.*best.txt': move it away") as raised:
        given_cards(str(tmp_path / "best.txt"))
    assert "\n" not in str(raised.value)


def test_a_word_of_any_length_is_quoted_in_part() -> None:
    with pytest.raises(PluginError, match="unknown context template 'qqq") as raised:
        given_contexts(["q" * 200_000], library_for("pocket", []))
    assert len(str(raised.value)) < 700


def test_a_card_that_nobody_edited_is_read(tmp_path: Path) -> None:
    (tmp_path / "best.txt").write_text("Be safe.\n", encoding="utf-8")
    assert given_cards(str(tmp_path / "best.txt")) == []
    (tmp_path / "best.json").write_text(json.dumps(EDITED, indent=3), encoding="utf-8")
    assert [card.model for card in given_cards(str(tmp_path / "best.txt"))] == ["mine"]
