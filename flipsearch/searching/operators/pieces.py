r"""Splits a text into sentences and list items that can be dropped, moved and joined again within its paragraphs.

    split("One. Two.\n\n- three")  ->  Piece("One."), Piece("Two.", " "), Piece("- three", "\n\n")

Joining what was split gives the tidied text back. Line and paragraph breaks stay where they are while sentences move,
since placement "around" depends on paragraphs. The rules are those of English prose, with the full stops of Chinese and
Japanese. This module knows nothing of contexts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from flipsearch.templating.template import tidy

GAPS = ("", " ", "\n", "\n\n")
"""White space between two pieces, from the narrowest to the widest."""
_ITEM = re.compile(r"(?:[-*•–]|\d{1,2}[.)]) ")
_CLOSERS = r"[\"'”’»)\]*_]*"
_CLOSED = re.compile(rf"[.!?:…。！？]{_CLOSERS}$")
# A sentence ends at a stop followed by a blank, unless the next word begins in lower case or marks an item; "Dr." and
# "e.g." end none. Chinese and Japanese put no blank.
_END = re.compile(
    rf"(?<![DM][rs]\.)(?<![ei]\.[ge]\.)(?<=[.!?…]){_CLOSERS} (?!{_ITEM.pattern})|(?<=[。！？])(?=[^\s」』”’）])"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A sentence, a heading or a list item."""

    text: str
    """Without white space around it."""
    gap: str = " "
    """White space before it, one of GAPS."""

    @property
    def is_item(self) -> bool:
        """Whether it is an item of a list, on a line of its own."""
        return bool(_ITEM.match(self.text))


def split(text: str) -> list[Piece]:
    """Return the pieces of a text, none for an empty one."""
    pieces: list[Piece] = []
    for paragraph in filter(None, tidy(text).split("\n\n")):
        gap = GAPS[-1]
        for line in _whole_lines(paragraph):
            for sentence, before in _sentences(line):
                pieces.append(Piece(sentence, before or gap))
                gap = ""
            gap = "\n"
    return pieces


def join(pieces: Sequence[Piece]) -> str:
    """Return the text of pieces in any order: items and headings on lines of their own."""
    text = pieces[0].text if pieces else ""
    for before, piece in pairwise(pieces):
        if before.is_item or piece.is_item or before.text.endswith(":") or not _CLOSED.search(before.text):
            least = "\n"
        else:
            least = "" if before.text[-1] in "。！？" else " "
        text += max(piece.gap, least, key=GAPS.index) + piece.text
    return text


def without(pieces: Sequence[Piece], index: int) -> list[Piece]:
    """Return the pieces without one of them; a paragraph that goes on without it still starts there."""
    rest = [*pieces[:index], *pieces[index + 1 :]]
    if index < len(rest):
        rest[index] = replace(rest[index], gap=max(pieces[index].gap, rest[index].gap, key=GAPS.index))
    return rest


def inserted(pieces: Sequence[Piece], index: int, piece: Piece) -> list[Piece]:
    """Return the pieces with one more before `index`, in the paragraph of the piece before it."""
    gap = "\n" if any(present.gap == "\n" for present in pieces) else " "
    rest = list(pieces)
    if index == 0 and rest:
        rest[0] = replace(rest[0], gap=gap)
    return [*rest[:index], replace(piece, gap=gap), *rest[index:]]


def movable(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the pieces that can go elsewhere: all but the lines that introduce a list."""
    introduces = [piece.text.endswith(":") and after.is_item for piece, after in pairwise(pieces)]
    return [index for index, is_fixed in enumerate([*introduces, False][: len(pieces)]) if not is_fixed]


def insertion_points(pieces: Sequence[Piece], piece: Piece) -> list[int]:
    """Return the indices before which a piece may be put: an item beside items, anything else outside of lists."""
    beside = [i for i in range(len(pieces) + 1) if any(near.is_item for near in pieces[max(0, i - 1) : i + 1])]
    return beside if piece.is_item and beside else seams(pieces)


def seams(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices before which a text can be cut in two, both ends included, without breaking a list."""
    breaks = [after.is_item and (piece.is_item or piece.text.endswith(":")) for piece, after in pairwise(pieces)]
    return [index for index, breaks_list in enumerate([False, *breaks, False][: len(pieces) + 1]) if not breaks_list]


def num_words(pieces: Sequence[Piece]) -> int:
    """Return the length of a text in words."""
    return sum(len(piece.text.split()) for piece in pieces)


def _whole_lines(paragraph: str) -> list[str]:
    """Split a paragraph into lines, joining those that one sentence was wrapped over."""
    lines: list[str] = []
    for line in paragraph.split("\n"):
        if lines and line[:1].islower() and not _CLOSED.search(lines[-1]):
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    return lines


def _sentences(line: str) -> list[tuple[str, str]]:
    """Split a line into sentences, each with the white space before it."""
    if _ITEM.match(line):
        return [(line, "")]
    sentences, start, gap = [], 0, ""
    for end in _END.finditer(line):
        if not line[end.end() :][:1].islower():
            stop = end.end() - 1 if end[0] else end.end()
            sentences.append((line[start:stop], gap))
            start, gap = end.end(), " " if end[0] else ""
    return [*sentences, (line[start:], gap)]
