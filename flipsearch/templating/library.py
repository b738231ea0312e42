"""The library of context templates: the shipped contexts/ and any folder or file that the user names; its placebos.

Every template with role "placebo" is a row of the leaderboard: what a context without safety content does to the same
prompts. One that takes a `text` is given the winner's, one that takes `num_words` the winner's length. Both are put
where the winner is, and so wait until there is a winner. The others (the empty text, which samples the baseline once
more) are measured before the search.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flipsearch.core.errors import ConfigError, PluginError, unknown_name
from flipsearch.core.package import content_folder
from flipsearch.core.records import Context
from flipsearch.templating.template import Template, TemplateRole, read_template

TEXT = "text"
NUM_WORDS = "num_words"


class TemplateLibrary:
    """Templates by name. A user's template replaces the shipped one of the same name."""

    def __init__(self, templates: Iterable[Template]) -> None:
        self._templates = {template.name: template for template in templates}

    def __getitem__(self, name: str) -> Template:
        if name not in self._templates:
            raise PluginError(unknown_name("context template", name, self._templates, "See: flipsearch list contexts."))
        return self._templates[name]

    def names(self, role: TemplateRole | None = None) -> list[str]:
        """Return the names of the templates with `role`, sorted."""
        return sorted(name for name, template in self._templates.items() if role in (None, template.role))

    def descriptions(self) -> dict[str, str]:
        """Return name -> description."""
        return {name: template.description for name, template in self._templates.items()}

    def select(self, names: Sequence[str] = ()) -> list[Template]:
        """Return the templates to search: the named ones, or every one with role "context"."""
        return [self[name] for name in names or self.names("context")]


def load_library(extra: Sequence[Path | str] = ()) -> TemplateLibrary:
    """Return the library of contexts/*.j2 and the folders or files in `extra`.

    Raises PluginError for a path without templates and TemplateError (file:line) for a bad template.
    """
    files = sorted(content_folder("contexts").glob("*.j2"))
    for path in map(Path, extra):
        templates = sorted(path.glob("*.j2")) if path.is_dir() else [path]
        if not templates or not templates[0].is_file():
            raise PluginError(f"no context template at '{path}'; expected a .j2 file or a folder that holds some.")
        files += templates
    return TemplateLibrary(read_template(file) for file in files)


@dataclass(frozen=True, slots=True)
class PlaceboRow:
    """One placebo template."""

    template: Template

    @property
    def needs_winner(self) -> bool:
        """Whether its text depends on the context that it is a placebo for."""
        return any(param.name in (TEXT, NUM_WORDS) for param in self.template.params)

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
        return replace(context, placement=winner.placement, parents=(winner.context_id,))

    def note(self, winner: Context) -> str | None:
        """Return a note for the report if the placebo does not match the winner in length."""
        wanted, got = len(winner.text.split()), len(self.context(winner).text.split())
        if not self.needs_winner or wanted == got:
            return None
        return f"Placebo {self.template.name} has {got} words, the context it is matched to {wanted}."


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
