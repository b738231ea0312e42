"""Placebo rows: what a context without safety content does to the same prompts.

Every template with role "placebo" is a row. One that takes a `text` is given the winner's, one that takes `num_words`
the winner's length; both go where the winner goes, and so wait until there is one. The others (the empty text, which
is the baseline asked once more) are measured before the search.
"""

from dataclasses import dataclass, replace
from typing import Any

from flipsearch.errors import ConfigError
from flipsearch.records import Context
from flipsearch.templating.library import TemplateLibrary
from flipsearch.templating.template import Template

TEXT = "text"
NUM_WORDS = "num_words"


@dataclass(frozen=True, slots=True)
class PlaceboRow:
    """One placebo template."""

    template: Template
    """Its source."""

    @property
    def needs_winner(self) -> bool:
        """Its text depends on the context that it is a placebo for."""
        return any(param.name in (TEXT, NUM_WORDS) for param in self.template.params)

    def context(self, winner: Context | None = None) -> Context:
        """Return the row's context, matched to `winner` if the row needs one."""
        if winner is None or not self.needs_winner:
            return self.template.context()
        # The placement is the winner's even where the template does not list it: only the words may differ.
        context = self.template.context(_matched(self.template, winner))
        return replace(context, placement=winner.placement, parents=(winner.context_id,))

    def note(self, winner: Context) -> str | None:
        """Return what the reader must know of a placebo that does not match the winner in length."""
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
    """Return the placebo "empty", "neutral" or "shuffled" where `context` stands, as long as it but for "empty"."""
    row = next((row for row in placebo_rows(library) if row.template.name == f"placebo_{name}"), None)
    if row is None:
        raise ConfigError(f"no template placebo_{name} among the contexts; it belongs to the package.")
    return row.context(context)


def _matched(template: Template, winner: Context) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for param in template.params:
        if param.name == TEXT and param.given:
            values[TEXT] = winner.text
        if param.name == NUM_WORDS and not param.given:
            num_words = len(winner.text.split())
            values[NUM_WORDS] = min(param.choices, key=lambda choice: abs(choice - num_words))
    return values
