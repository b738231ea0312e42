"""What a record shows of itself at a Python prompt and in a notebook: a few facts, never all that it holds.

Characters that no reader sees, or that reorder what is read: what marks them for people, and what counts them.

A context with Unicode tags reads as harmless to a reviewer and as an instruction to a model. Joiners and variation
selectors stay where scripts and emoji need them.
"""

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence

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


MARK = "\ufffd"
KINDS = {
    "tags": "\U000e0000-\U000e00ff",
    "variation selectors": "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef",
    "reordering marks": "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069",
    "zero-width": "\u00ad\u034f\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\ufeff",
    "blank letters": "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0",
    "control characters": "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a",
    "characters without a meaning": "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000e0200-\U0010ffff",
}
"""Name -> the characters of the kind, as ranges of a regular expression."""
_SCRIPT = "\u0590-\u08ff\u0900-\u109f\u1780-\u18af"
_SYMBOL = "\u00a9\u00ae\u203c-\u3299\ufe0e\ufe0f\U0001f000-\U0001faff"
_NEEDED = (
    f"(?<=[{_SCRIPT}])[\u200c\u200d](?=[{_SCRIPT}])|(?<=[{_SYMBOL}])\u200d(?=[{_SYMBOL}])"
    f"|(?<=[#*0-9{_SYMBOL}])(?<![\ufe0e\ufe0f])[\ufe0e\ufe0f]"
)
"""Joiners between letters of scripts that have them, or between emoji; one selector after an emoji or a key."""
_SEEN = {ord(character): None for character in "\t\n"}
_HIDDEN = re.compile(f"({_NEEDED})|[{''.join(KINDS.values())}]|\r(?!\n)")


def printable(text: str) -> str:
    """Return a text as every page, card, table and terminal shows it: MARK for each character that hides or reorders.

    Tabs and line breaks stay.
    """
    if text.isascii() and text.translate(_SEEN).isprintable():
        return text
    return _HIDDEN.sub(lambda match: match[1] or MARK, text)


def hidden_characters(text: str) -> dict[str, int]:
    """Return kind -> how many characters of a text `printable` would mark, most first."""
    marked = [match[0] for match in _HIDDEN.finditer(text) if not match[1]]
    kinds = {name: re.compile(f"[{ranges}]") for name, ranges in KINDS.items()}
    counts = Counter(
        next((name for name, kind in kinds.items() if kind.match(character)), "control characters")
        for character in marked
    )
    return dict(counts.most_common())


def escaped_json(text: str) -> str:
    """Return JSON with an escape for each hidden character: it is the same JSON, and a reviewer sees them."""

    def escape(match: re.Match[str]) -> str:
        if match[1] or match[0] == "\r":
            return match[0]
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))

    return _HIDDEN.sub(escape, text)
