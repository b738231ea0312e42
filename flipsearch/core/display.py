"""What a record shows of itself at a Python prompt and in a notebook: a few facts, never all that it holds."""

import html
from collections.abc import Mapping, Sequence

from flipsearch.core.hidden import printable
from flipsearch.core.measurements import Difference, Estimate, Rate

LONGEST_FACT = 200
"""Characters of a fact that are shown."""


def shortened(text: str, most: int = LONGEST_FACT) -> str:
    """Return a text in one line of at most `most` characters."""
    line = " ".join(printable(text[: 2 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def figure(value: Rate | Estimate | Difference | None) -> str:
    """Return a rate or difference in percent with its interval and n."""
    if value is None or value.value is None:
        return "not measured"
    return f"{100 * value.value:.1f} % ({100 * value.low:.0f} to {100 * value.high:.0f}, n {value.n:,})"


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table for a notebook; cells are plain text, whatever they hold."""

    def cells(row: Sequence[str], tag: str) -> str:
        style = ' style="text-align:left;white-space:pre-wrap"'
        return "<tr>" + "".join(f"<{tag}{style}>{html.escape(printable(cell))}</{tag}>" for cell in row) + "</tr>"

    head = cells(header, "th") if header else ""
    return f"<table>{head}{''.join(cells(row, 'td') for row in rows)}</table>"


class ShowsFacts:
    """A record that is shown by a few named facts."""

    __slots__ = ()

    def facts(self) -> Mapping[str, str]:
        """Return name -> what is shown of it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {', '.join(f'{name}: {shortened(text)}' for name, text in self.facts().items())}>"
        )

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b>" + html_table([(name, text) for name, text in self.facts().items()])
