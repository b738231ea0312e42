"""Contexts that the user already has: a text, a text file, a card of one context or of several, a template's name."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from flipsearch.core.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.core.records import Context, Placement
from flipsearch.templating.library import TemplateLibrary

FILE_ENDINGS = (".txt", ".md", ".json")


def given_contexts(given: Sequence[str], library: TemplateLibrary, placement: Placement | None = None) -> list[Context]:
    """Return the contexts of `given`, in order and each once; `placement` overrides a card's own.

    A file ending (.txt, .md, .json) means a file, one word means a template name, anything else is the text itself. A
    portfolio (best.portfolio.json) holds several contexts. Raises ConfigError or PluginError in one line.
    """
    if not given:
        raise ConfigError("no context given; expected a text, a file, a card (best.json) or a template name.")
    contexts = [context for one in given for context in _given(one, library, placement)]
    return list({context.context_id: context for context in contexts}.values())


def given_cards(given: str) -> "list[Card]":
    """Return the cards that contexts were given by: those in a .json, or the one beside a .txt with the same text."""
    path = Path(given)
    if path.suffix == ".json":
        return _cards(_read(path), path)
    if not given.endswith(FILE_ENDINGS):
        return []
    beside, cards = path.with_suffix(".json"), list[Card]()
    with suppress(ConfigError):  # a file that happens to stand beside it need not be a card
        cards = _cards(_read(beside), beside)
    if cards and [card.text.strip() for card in cards] != [_read(path).strip()]:
        raise ConfigError(f"'{given}' is not the text of the card '{beside}' beside it; move one of them away.")
    return cards


def _given(one: str, library: TemplateLibrary, placement: Placement | None) -> list[Context]:
    if one.endswith(FILE_ENDINGS):
        return _from_file(Path(one), placement)
    if len(one.split()) == 1:
        if one not in library.names():
            raise PluginError(unknown_name("context template", one, library.names(), "A text has more than one word."))
        return [library[one].context(placement=placement)]
    if not one.strip():
        raise ConfigError("an empty context given; the empty placebo stands in every score anyway.")
    return [Context(one.strip(), placement or "system")]


def _from_file(path: Path, placement: Placement | None) -> list[Context]:
    if cards := given_cards(str(path)):
        return [_of_card(card, placement) for card in cards]
    text = _read(path).strip()
    if not text:
        raise ConfigError(f"context file '{path}' is empty.")
    return [Context(text, placement or "system")]


def _of_card(card: "Card", placement: Placement | None) -> Context:
    params = tuple(sorted(card.params.items()))
    return Context(card.text, placement or card.placement, card.template, params, card.axes)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is one, and so is a NUL in a path
        names: list[str] = []
        with suppress(OSError, ValueError):
            names = [p.name for p in path.parent.glob("*")]
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"context file '{path}' cannot be read: {why}.{near_names(path.name, names)}") from error


class CardPrompts(BaseModel):
    """The prompts that a context was found on, as the user named them."""

    prompts: str | None = None
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()


class CardSampling(BaseModel):
    """How the model was asked."""

    thinking: str = "auto"
    max_tokens: int | None = None


class Card(BaseModel):
    """What is read of a context card."""

    text: Annotated[str, Field(min_length=1)]
    placement: Placement
    template: str = ""
    params: dict[str, str | int | bool] = {}
    axes: tuple[str, ...] = ()
    model: str | None = None
    """What it was found for; None for a card of another make, which says nothing of it."""
    model_id: str | None = None
    backend: str | None = None
    prompts: CardPrompts = CardPrompts()
    sampling: CardSampling = CardSampling()


class PortfolioCard(BaseModel):
    """What is read of a card of several contexts."""

    contexts: Annotated[list[Card], Field(min_length=1)]


def _cards(source: str, path: Path) -> list[Card]:
    try:
        if _is_portfolio(source):
            return PortfolioCard.model_validate_json(source).contexts
        return [Card.model_validate_json(source)]
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: not a context card: {what}: {first['msg']}.") from error


def _is_portfolio(source: str) -> bool:
    with suppress(ValueError):
        found = from_json(source)
        return isinstance(found, dict) and "contexts" in found
    return False
