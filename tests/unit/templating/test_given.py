"""Contexts that the user names: texts, files, cards and templates."""

import json
from pathlib import Path

import pytest

from flipsearch.core.errors import ConfigError
from flipsearch.templating.library import CARD_VERSION, given_cards


@pytest.mark.parametrize("named", ["best.txt", "best.json"])
def test_a_card_of_another_version_is_refused_even_beside_its_text(tmp_path: Path, named: str) -> None:
    card = {"text": "Be safe.", "placement": "system", "card_version": CARD_VERSION - 1}
    (tmp_path / "best.txt").write_text("Be safe.\n", encoding="utf-8")
    (tmp_path / "best.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a context card of version {CARD_VERSION - 1}, expected {CARD_VERSION}"):
        given_cards(str(tmp_path / named))


def test_a_json_file_that_is_no_card_may_have_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Be safe.\n", encoding="utf-8")
    (tmp_path / "mine.json").write_text('{"notes": 1}', encoding="utf-8")
    assert given_cards(str(tmp_path / "mine.txt")) == []
