"""Where contexts come from: the library of templates with its placebos, and the texts, files and cards of the user.

Templates are those of the shipped contexts/ (for the pocket model, whose vocabulary is small, contexts/pocket/) and of
any folder or file that the user names.

Every template with role "placebo" is a row of the leaderboard: what a context without safety content does to the same
prompts. One that takes a `text` is given the winner's, one that takes `num_words` the winner's length. Both are put
where the winner is, and so wait until there is a winner. The others (the empty text, which samples the baseline once
more) are measured before the search.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from flipsearch.core.errors import ConfigError, NoContextError, PluginError, TemplateError, near_names, unknown_name
from flipsearch.core.files import content_folder, printable, read_text
from flipsearch.core.records import Context, Placement, content_id
from flipsearch.templating.template import NUM_WORDS, TEXT, Template, TemplateRole, read_template

FILE_ENDINGS = (".txt", ".md", ".json")
CONTEXTS, POCKET_CONTEXTS = "contexts", "contexts/pocket"
"""The shipped folders of templates: for chat models, and in the pocket model's vocabulary."""
BROKEN = "broken"
"""In a list of contexts, the role of a file that is no template."""


class TemplateLibrary:
    """Templates by name. A user's template replaces the shipped one of the same name."""

    def __init__(self, templates: Iterable[Template], shipped: str = CONTEXTS) -> None:
        self._templates = {template.name: template for template in templates}
        self._shipped = shipped

    def __getitem__(self, name: str) -> Template:
        if name not in self._templates:
            raise PluginError(unknown_name("context template", name, self._templates, self.where(name)))
        return self._templates[name]

    def names(self, role: TemplateRole | None = None) -> list[str]:
        """Return the names of the templates with `role`, sorted."""
        return sorted(name for name, template in self._templates.items() if role in (None, template.role))

    def where(self, name: str) -> str:
        """Say where templates are listed, and if the other shipped set has the name."""
        other = next(folder for folder in (CONTEXTS, POCKET_CONTEXTS) if folder != self._shipped)
        see = f"See: flipsearch list contexts{' --model pocket' if self._shipped == POCKET_CONTEXTS else ''}."
        if name not in (path.stem for path in (content_folder(CONTEXTS).parent / other).glob("*.j2")):
            return see
        whose = "the pocket model" if other == POCKET_CONTEXTS else "models other than the pocket model"
        return f"That one is for {whose} ({other}/). {see}"

    def select(self, names: Sequence[str] = ()) -> list[Template]:
        """Return the templates to search: the named ones, or every one with role "context"."""
        return [self[name] for name in names or self.names("context")]


def load_library(
    extra: Sequence[Path | str] = (), shipped: str = CONTEXTS, broken: dict[Path, TemplateError] | None = None
) -> TemplateLibrary:
    """Return the library of the `shipped` folder, contexts or contexts/pocket, and the folders or files in `extra`.

    Raises PluginError for a path without templates and TemplateError (file:line) for a bad template; with `broken`,
    such templates are put there instead.
    """
    files = sorted((content_folder(CONTEXTS).parent / shipped).glob("*.j2"))
    for path in map(Path, extra):
        templates = sorted(path.glob("*.j2")) if path.is_dir() else [path]
        if not templates or not templates[0].is_file():
            raise PluginError(f"no context template at '{path}'; expected a .j2 file or a folder that holds some.")
        files += templates
    loaded = []
    for file in files:
        try:
            loaded.append(read_template(file))
        except TemplateError as error:
            if broken is None:
                raise
            broken[file] = error
    return TemplateLibrary(loaded, shipped)


@dataclass(frozen=True, slots=True)
class PlaceboRow:
    """A placebo template as a row of the leaderboard."""

    template: Template

    @property
    def needs_winner(self) -> bool:
        """Whether its text depends on the context that it is a placebo for."""
        return any(param.name in (TEXT, NUM_WORDS) for param in self.template.params)

    @property
    def keeps_words(self) -> bool:
        """Whether it is made of the very words of the context that it is a placebo for."""
        return any(param.name == TEXT and param.given for param in self.template.params)

    def context(self, winner: Context | None = None) -> Context:
        """Return the context of the row, matched to `winner` in text, length and placement if the row needs one."""
        if winner is None or not self.needs_winner:
            return self.template.context()
        values: dict[str, Any] = {}
        for param in self.template.params:
            if param.name == TEXT and param.given:
                values[TEXT] = winner.text
            if param.name == NUM_WORDS and not param.given:
                num_words = len(winner.text.split())
                values[NUM_WORDS] = min(param.choices, key=lambda choice: abs(choice - num_words))
        # The placement is the winner's even where the template does not list it: only the words may differ.
        context = self.template.context(values)
        text = _in_paragraphs_of(winner.text, context.text) if winner.placement == "around" else context.text
        return replace(context, text=text, placement=winner.placement, parents=(winner.context_id,))

    def note(self, winner: Context) -> str | None:
        """Return a note for the report if the placebo does not match the winner in length."""
        wanted, got = len(winner.text.split()), len(self.context(winner).text.split())
        if not self.needs_winner or wanted == got:
            return None
        return f"Placebo {self.template.name} has {got} words, the context it is matched to {wanted}."


def _in_paragraphs_of(pattern: str, text: str) -> str:
    """Return a text in paragraphs as long as those of `pattern`: which one is the last decides what is put where."""
    words, paragraphs = text.split(), []
    for paragraph in filter(None, map(str.split, pattern.split("\n\n"))):
        paragraphs.append(" ".join(words[: len(paragraph)]))
        words = words[len(paragraph) :]
    return "\n\n".join(filter(None, [*paragraphs, " ".join(words)]))


def placebo_rows(library: TemplateLibrary) -> tuple[PlaceboRow, ...]:
    """Return the placebo rows of a library, sorted by name; ConfigError for one that needs an unknown text."""
    rows = tuple(PlaceboRow(library[name]) for name in library.names("placebo"))
    for row in rows:
        for param in row.template.params:
            if param.given and param.name != TEXT:
                raise ConfigError(
                    f"{row.template.path}: a placebo is given '{TEXT}' (the winner's) and nothing else, "
                    f"but it needs '{param.name}'."
                )
    return rows


def control_context(library: TemplateLibrary, name: str, context: Context) -> Context:
    """Return the placebo "empty", "neutral" or "shuffled" for `context`, of the same length unless empty."""
    row = next((row for row in placebo_rows(library) if row.template.name == f"placebo_{name}"), None)
    if row is None:
        raise ConfigError(f"no template placebo_{name} among the contexts; it belongs to the package.")
    return row.context(context)


class CardPrompts(BaseModel):
    """The prompts that a context was searched on, as the user named them."""

    prompts: str | None = None
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()


class CardSampling(BaseModel):
    """How completions were generated."""

    thinking: str = "auto"
    max_tokens: int | None = None
    think_tokens: int | None = None


class Card(BaseModel):
    """The fields of a context card that are read."""

    text: Annotated[str, Field(min_length=1)]
    placement: Placement
    template: str = ""
    params: dict[str, str | int | bool] = {}
    axes: tuple[str, ...] = ()
    model: str | None = None
    model_id: str | None = None
    backend: str | None = None
    study: str | None = None
    prompts: CardPrompts = CardPrompts()
    sampling: CardSampling = CardSampling()


class PortfolioCard(BaseModel):
    """The fields of a card of several contexts that are read."""

    contexts: Annotated[list[Card], Field(min_length=1)]


CARD_VERSION = 4
"""Format of context cards; another one is refused."""
SEAL = "card_id"


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card with a hash of all that it says, by which an edited one is known."""
    return {**card, SEAL: _seal(card)}


def empty_card(study: str, verdict: str) -> dict[str, Any]:
    """Return what lies in the place of a winner's card where a study confirmed no context: why there is none."""
    return sealed({"card_version": CARD_VERSION, "study": study, "text": None, "verdict": verdict})


def _seal(card: Mapping[str, Any]) -> str:
    content = json.loads(json.dumps({key: value for key, value in card.items() if key != SEAL}))
    return content_id("card", content)


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
                hint = f"A text has more than one word. {library.where(text)}"
                raise PluginError(unknown_name("context template", text, library.names(), hint))
            contexts.append(library[text].context(placement=placement))
        elif text.strip():
            contexts.append(Context(text.strip(), placement or "system"))
        else:
            raise ConfigError("an empty context given; every score includes the empty placebo anyway.")
    return list({context.context_id: context for context in contexts}.values())


def given_cards(given: str) -> list[Card]:
    """Return the cards of a given context: those in a .json file, or the one beside a .txt with the same text.

    What lies beside a text has to be its card: without it the text would be taken for another model's, or misplaced.
    """
    path = Path(given)
    if path.suffix == ".json":
        return _read_cards(path)
    if not given.endswith(FILE_ENDINGS) or not os.path.lexists(beside := path.with_suffix(".json")):
        return []
    try:
        cards = _read_cards(beside)
    except NoContextError:
        if not path.is_file():
            raise
        return []  # somebody's own text
    except ConfigError as error:
        raise ConfigError(f"{error} It lies beside '{given}': move it away to use the text alone.") from error
    if [card.text.strip() for card in cards] != [_read(path).strip()]:
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
    source = _read(path)
    content: object = None
    with suppress(ValueError):
        content = from_json(source)
    is_portfolio = isinstance(content, dict) and "contexts" in content
    if isinstance(content, dict) and "card_version" in content:  # one without is written by hand
        if content["card_version"] != CARD_VERSION:
            raise ConfigError(
                f"{path}: a context card of version {content['card_version']}, expected {CARD_VERSION}; "
                "run the search again, or give the text without its card."
            )
        if content.get(SEAL) != _seal(content):
            raise ConfigError(
                f"{path}: the context card was edited: it no longer says what the search found. Restore it "
                "(flipsearch report writes a study's files again), or give the text without its card."
            )
        if content.get("text", "") is None:
            study, why = str(content.get("study")), printable(str(content.get("verdict")))
            raise NoContextError(
                f"'{path.with_suffix('.txt')}' is not there: study '{study}' confirmed no context. {why}"
            )
    try:
        if is_portfolio:
            return PortfolioCard.model_validate_json(source).contexts
        return [Card.model_validate_json(source)]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigError(f"{path}: not a context card: {field}: {first['msg']}.") from error


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, and so is a NUL in a path
        names: list[str] = []
        if isinstance(error, FileNotFoundError):
            with suppress(OSError, ValueError):
                names = [sibling.name for sibling in path.parent.glob("*")]
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"context file '{path}' cannot be read: {why}.{near_names(path.name, names)}") from error
