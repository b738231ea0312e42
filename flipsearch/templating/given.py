"""Contexts that the user already has: a text, a text file, a context card or the name of a template."""

import json
from collections.abc import Sequence
from pathlib import Path

from flipsearch.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.records import PLACEMENTS, Context, Placement
from flipsearch.templating.library import TemplateLibrary

FILE_ENDINGS = (".txt", ".md", ".json")


def given_contexts(given: Sequence[str], library: TemplateLibrary, placement: Placement | None = None) -> list[Context]:
    """Return one context for each of `given`; `placement` overrides a card's own.

    A file ending (.txt, .md, .json) means a file, one word means a template name, anything else is the text itself.
    Raises ConfigError or PluginError in one line.
    """
    if not given:
        raise ConfigError("no context given; expected a text, a file, a card (best.json) or a template name.")
    contexts = [_given(one, library, placement) for one in given]
    return list({context.context_id: context for context in contexts}.values())


def _given(one: str, library: TemplateLibrary, placement: Placement | None) -> Context:
    if one.endswith(FILE_ENDINGS):
        return _from_file(Path(one), placement)
    if len(one.split()) == 1:
        if one not in library.names():
            raise PluginError(unknown_name("context template", one, library.names(), "A text has more than one word."))
        return library[one].context(placement=placement)
    return Context(one.strip(), placement or "system")


def _from_file(path: Path, placement: Placement | None) -> Context:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        names = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ConfigError(f"context file '{path}' cannot be read: {error}.{near_names(path.name, names)}") from error
    if path.suffix == ".json":
        return _from_card(path, text, placement)
    card = path.with_suffix(".json")
    if card.is_file():
        kept = _from_card(card, card.read_text(encoding="utf-8"), placement)
        # The card beside a text speaks for it only while the text is the same.
        return kept if kept.text == text else Context(text, placement or kept.placement)
    return Context(text, placement or "system")


def _from_card(path: Path, source: str, placement: Placement | None) -> Context:
    try:
        card = json.loads(source)
        text, where = card["text"], card["placement"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a context card: expected JSON with text and placement ({error}).") from error
    if where not in PLACEMENTS or not isinstance(text, str):
        raise ConfigError(f"{path}: {unknown_name('placement', str(where), PLACEMENTS)}")
    return Context(
        text, placement or where, str(card.get("template", "")), tuple(sorted(card.get("params", {}).items())),
        tuple(card.get("axes", ())),
    )  # fmt: skip
