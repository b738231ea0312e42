"""Contexts that the user gives: a text, a text file, a card of one context or of several, or a template's name."""

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


class CardPrompts(BaseModel):
    """The prompts that a context was searched on, as the user named them."""

    prompts: str | None = None
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()


class CardSampling(BaseModel):
    """How completions were generated."""

    thinking: str = "auto"
    max_tokens: int | None = None


class Card(BaseModel):
    """The fields of a context card that are read."""

    text: Annotated[str, Field(min_length=1)]
    placement: Placement
    template: str = ""
    params: dict[str, str | int | bool] = {}
    axes: tuple[str, ...] = ()
    model: str | None = None
    """The model that it was searched for; None if the card does not say."""
    model_id: str | None = None
    backend: str | None = None
    prompts: CardPrompts = CardPrompts()
    sampling: CardSampling = CardSampling()


class PortfolioCard(BaseModel):
    """The fields of a card of several contexts that are read."""

    contexts: Annotated[list[Card], Field(min_length=1)]


CARD_VERSION = 2
"""Format of context cards; another one is refused."""


class CardVersionError(ConfigError):
    """A context card was written by another version."""


def given_contexts(given: Sequence[str], library: TemplateLibrary, placement: Placement | None = None) -> list[Context]:
    """Return the distinct contexts of `given`, in order; `placement` overrides a card's own.

    A file ending (.txt, .md, .json) means a file, one word means a template name, anything else is the text itself. A
    portfolio (best.portfolio.json) holds several contexts. Raises ConfigError or PluginError in one line.
    """
    if not given:
        raise ConfigError("no context given; expected a text, a file, a card (best.json) or a template name.")
    contexts: list[Context] = []
    for text in given:
        if text.endswith(FILE_ENDINGS):
            contexts += _contexts_of_file(Path(text), placement)
        elif len(text.split()) == 1:
            if text not in library.names():
                names = library.names()
                raise PluginError(unknown_name("context template", text, names, "A text has more than one word."))
            contexts.append(library[text].context(placement=placement))
        elif text.strip():
            contexts.append(Context(text.strip(), placement or "system"))
        else:
            raise ConfigError("an empty context given; every score includes the empty placebo anyway.")
    return list({context.context_id: context for context in contexts}.values())


def given_cards(given: str) -> list[Card]:
    """Return the cards of a given context: those in a .json file, or the one beside a .txt with the same text."""
    path = Path(given)
    if path.suffix == ".json":
        return _read_cards(path)
    if not given.endswith(FILE_ENDINGS):
        return []
    beside, cards = path.with_suffix(".json"), list[Card]()
    try:
        cards = _read_cards(beside)
    except CardVersionError:
        raise
    except ConfigError:  # a .json file of the same name need not be a card
        pass
    if cards and [card.text.strip() for card in cards] != [_read(path).strip()]:
        raise ConfigError(f"'{given}' is not the text of the card '{beside}' beside it; move one of them away.")
    return cards


def _contexts_of_file(path: Path, placement: Placement | None) -> list[Context]:
    if cards := given_cards(str(path)):
        return [
            Context(
                card.text, placement or card.placement, card.template, tuple(sorted(card.params.items())), card.axes
            )
            for card in cards
        ]
    text = _read(path).strip()
    if not text:
        raise ConfigError(f"context file '{path}' is empty.")
    return [Context(text, placement or "system")]


def _read_cards(path: Path) -> list[Card]:
    """Return the cards of a .json file: of one context, or of a portfolio; ConfigError if it is neither."""
    source = _read(path)
    content: object = None
    with suppress(ValueError):
        content = from_json(source)
    is_portfolio = isinstance(content, dict) and "contexts" in content
    if isinstance(content, dict) and content.get("card_version", CARD_VERSION) != CARD_VERSION:
        raise CardVersionError(
            f"{path}: a context card of version {content['card_version']}, expected {CARD_VERSION}; "
            "run the search again, or give the text without its card."
        )
    try:
        if is_portfolio:
            return PortfolioCard.model_validate_json(source).contexts
        return [Card.model_validate_json(source)]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: not a context card: {field}: {first['msg']}.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, and so is a NUL in a path
        names: list[str] = []
        with suppress(OSError, ValueError):
            names = [sibling.name for sibling in path.parent.glob("*")]
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"context file '{path}' cannot be read: {why}.{near_names(path.name, names)}") from error
