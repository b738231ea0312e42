r"""A text as its sentences and list items, which can be cut, moved and joined again without losing its paragraphs.

    split("One. Two.\n\n- three")  ->  Piece("One."), Piece("Two.", " "), Piece("- three", "\n\n")

Joining what was split gives the tidied text back. Line and paragraph breaks stay where they are while sentences move,
since placement "around" goes by paragraphs. The rules are those of English prose and know the full stops of Chinese
and Japanese. This module knows nothing of contexts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flipsearch.templating.template import tidy

GAPS = ("", " ", "\n", "\n\n")
"""White space between two pieces, from the narrowest to the widest."""
_ITEM = re.compile(r"(?:[-*•–]|\d{1,2}[.)]) ")
_CLOSERS = r"[\"'”’»)\]*_]*"
_CLOSED = re.compile(rf"[.!?:…。！？]{_CLOSERS}$")
# A sentence ends at a stop with a blank behind it, unless the next word is small or marks an item; "Dr." and "e.g." end
# none. Chinese and Japanese put no blank.
_END = re.compile(
    rf"(?<![DM][rs]\.)(?<![ei]\.[ge]\.)(?<=[.!?…]){_CLOSERS} (?!{_ITEM.pattern})|(?<=[。！？])(?=[^\s」』”’）])"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A sentence, a heading or a list item."""

    text: str
    """Without white space around it."""
    gap: str = " "
    """White space that is to stand before it, one of GAPS."""

    @property
    def is_item(self) -> bool:
        """It stands in a list, on a line of its own."""
        return bool(_ITEM.match(self.text))


def split(text: str) -> list[Piece]:
    """Return the pieces of a text, none for an empty one."""
    found: list[Piece] = []
    for paragraph in filter(None, tidy(text).split("\n\n")):
        gap = GAPS[-1]
        for line in _whole_lines(paragraph):
            for sentence, before in _sentences(line):
                found.append(Piece(sentence, before or gap))
                gap = ""
            gap = "\n"
    return found


def join(pieces: Sequence[Piece]) -> str:
    """Return the text of pieces in any order: items and headings on lines of their own."""
    text = ""
    for index, piece in enumerate(pieces):
        text += (_gap(pieces[index - 1], piece) if index else "") + piece.text
    return text


def without(pieces: Sequence[Piece], index: int) -> list[Piece]:
    """Return the pieces without one of them; a paragraph that goes on without it still starts there."""
    rest = [*pieces[:index], *pieces[index + 1 :]]
    if index < len(rest):
        rest[index] = replace(rest[index], gap=_wider(pieces[index].gap, rest[index].gap))
    return rest


def inserted(pieces: Sequence[Piece], index: int, piece: Piece) -> list[Piece]:
    """Return the pieces with one more before `index`, in the paragraph of the piece before it."""
    line = "\n" if any(other.gap == "\n" for other in pieces) else " "
    rest = list(pieces)
    if index == 0 and rest:
        rest[0] = replace(rest[0], gap=line)
    return [*rest[:index], replace(piece, gap=line), *rest[index:]]


def movable(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the pieces that can stand elsewhere: all but the lines that lead in a list."""
    return [index for index in range(len(pieces)) if not _leads_in(pieces, index)]


def places(pieces: Sequence[Piece], piece: Piece) -> list[int]:
    """Return the indices before which a piece may be put: an item beside items, anything else outside of lists."""
    beside = [i for i in range(len(pieces) + 1) if any(other.is_item for other in pieces[max(0, i - 1) : i + 1])]
    return beside if piece.is_item and beside else seams(pieces)


def seams(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices before which a text can be cut in two, both ends included: no list is broken."""
    return [index for index in range(len(pieces) + 1) if not _inside_list(pieces, index)]


def num_words(pieces: Sequence[Piece]) -> int:
    """Return the length of a text in words."""
    return sum(len(piece.text.split()) for piece in pieces)


def _whole_lines(paragraph: str) -> list[str]:
    """Lines, with those put together again that a sentence was wrapped over."""
    lines: list[str] = []
    for line in paragraph.split("\n"):
        if lines and line[:1].islower() and not _CLOSED.search(lines[-1]):
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    return lines


def _sentences(line: str) -> list[tuple[str, str]]:
    """The sentences of a line, each with the white space before it."""
    if _ITEM.match(line):
        return [(line, "")]
    found, start, gap = [], 0, ""
    for end in _END.finditer(line):
        if not line[end.end() :][:1].islower():
            stop = end.end() - 1 if end[0] else end.end()
            found.append((line[start:stop], gap))
            start, gap = end.end(), " " if end[0] else ""
    return [*found, (line[start:], gap)]


def _gap(before: Piece, piece: Piece) -> str:
    if before.is_item or piece.is_item or before.text.endswith(":") or not _CLOSED.search(before.text):
        return _wider(piece.gap, "\n")
    return _wider(piece.gap, "" if before.text[-1] in "。！？" else " ")


def _wider(one: str, other: str) -> str:
    return max(one, other, key=GAPS.index)


def _leads_in(pieces: Sequence[Piece], index: int) -> bool:
    return pieces[index].text.endswith(":") and index + 1 < len(pieces) and pieces[index + 1].is_item


def _inside_list(pieces: Sequence[Piece], index: int) -> bool:
    before = index > 0 and (pieces[index - 1].is_item or _leads_in(pieces, index - 1))
    return before and index < len(pieces) and pieces[index].is_item
