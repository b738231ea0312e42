r"""Splits a text into sentences, list items and worked examples that can be dropped, moved and joined again.

    split("One. Two.\n\n- three")  ->  Piece("One."), Piece("Two.", " "), Piece("- three", "\n\n")

Joining what was split gives the tidied text back. Line and paragraph breaks stay where they are while sentences move,
since placement "around" depends on paragraphs. A paragraph that begins with a speaker ("User: …") is a worked example
and one piece. A section is a heading with what follows it or, in a text without headings, a paragraph. The rules are
those of English prose, with the full stops of Chinese and Japanese. This module knows nothing of contexts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from flipsearch.templating.template import tidy

GAPS = ("", " ", "\n", "\n\n")
"""White space between two pieces, from the narrowest to the widest."""
_ITEM = re.compile(r"(?:[-*•–]|\d{1,2}[.)]) ")
_EXAMPLE = re.compile(r"(?:User|Human|Request|Question|Q|Prompt|Input): ")
_HEADING = re.compile(r"(#{1,6}) \S|(\*\*)[^*]+\*\*$")
_CLOSERS = r"[\"'”’»)\]*_]*"
_CLOSED = re.compile(rf"[.!?:…。！？]{_CLOSERS}$")
# A sentence ends at a stop followed by a blank, unless the next word begins in lower case or marks an item; "Dr." and
# "e.g." end none. Chinese and Japanese put no blank.
_END = re.compile(
    rf"(?<![DM][rs]\.)(?<![ei]\.[ge]\.)(?<=[.!?…]){_CLOSERS} (?!{_ITEM.pattern})|(?<=[。！？])(?=[^\s」』”’）])"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A sentence, a heading, a list item or a worked example."""

    text: str
    """Without white space around it."""
    gap: str = " "
    """White space before it, one of GAPS."""

    @property
    def is_item(self) -> bool:
        """Whether it is an item of a list, on a line of its own."""
        return bool(_ITEM.match(self.text))

    @property
    def is_example(self) -> bool:
        """Whether it is a worked example: what somebody asks, and the reply."""
        return bool(_EXAMPLE.match(self.text))

    @property
    def level(self) -> int:
        """Level of a heading, from 1; 0 for anything else."""
        heading = _HEADING.match(self.text)
        return 0 if heading is None else len(heading[1] or "######")


def split(text: str) -> list[Piece]:
    """Return the pieces of a text, none for an empty one."""
    pieces: list[Piece] = []
    for paragraph in filter(None, tidy(text).split("\n\n")):
        gap = GAPS[-1]
        for line in [paragraph] if _EXAMPLE.match(paragraph) else _whole_lines(paragraph):
            for sentence, before in _sentences(line):
                pieces.append(Piece(sentence, before or gap))
                gap = ""
            gap = "\n"
    return pieces


def join(pieces: Sequence[Piece]) -> str:
    """Return the text of pieces in any order: items and headings on lines, examples in paragraphs of their own."""
    text = pieces[0].text if pieces else ""
    for before, piece in pairwise(pieces):
        if before.is_example or piece.is_example:
            least = "\n" if before.level else "\n\n"
        elif (
            before.level
            or piece.level
            or before.is_item
            or piece.is_item
            or before.text.endswith(":")
            or not _CLOSED.search(before.text)
        ):
            least = "\n"
        else:
            least = "" if before.text[-1] in "。！？" else " "
        text += max(piece.gap, least, key=GAPS.index) + piece.text
    return text


def without(pieces: Sequence[Piece], index: int) -> list[Piece]:
    """Return the pieces without one of them, or of a heading that has nothing left below it.

    A paragraph that continues without the piece still starts there.
    """
    rest = [*pieces[:index], *pieces[index + 1 :]]
    if index < len(rest):
        rest[index] = replace(rest[index], gap=max(pieces[index].gap, rest[index].gap, key=GAPS.index))
    above = rest[index - 1].level if index else 0
    is_last = index == len(rest) or 0 < rest[index].level <= above
    return without(rest, index - 1) if above and is_last else rest


def inserted(pieces: Sequence[Piece], index: int, piece: Piece) -> list[Piece]:
    """Return the pieces with one more before `index`, in the paragraph of the piece before it."""
    gap = "\n" if any(present.gap == "\n" for present in pieces) else " "
    rest = list(pieces)
    if index == 0 and rest:
        rest[0] = replace(rest[0], gap=gap)
    return [*rest[:index], replace(piece, gap=gap), *rest[index:]]


def movable(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the pieces that can go elsewhere: all but headings and lines that introduce a list."""
    introduces = [piece.text.endswith(":") and (after.is_item or after.is_example) for piece, after in pairwise(pieces)]
    return [i for i, is_fixed in enumerate([*introduces, False][: len(pieces)]) if not is_fixed and not pieces[i].level]


def insertion_points(pieces: Sequence[Piece], piece: Piece) -> list[int]:
    """Return the indices before which a piece may be put: a sentence outside of lists, others beside their like."""
    near = [pieces[max(0, i - 1) : i + 1] for i in range(len(pieces) + 1)]
    if piece.is_item or piece.is_example:
        beside = [i for i, both in enumerate(near) if any(kind_of(other) == kind_of(piece) for other in both)]
        if beside:
            return beside
    return [index for index in seams(pieces) if index or not (pieces and pieces[0].level)]


def seams(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices before which a text can be cut in two, both ends included, without breaking a list.

    Nothing is cut from its heading.
    """
    breaks = [
        piece.level > 0 or (after.is_item and (piece.is_item or piece.text.endswith(":")))
        for piece, after in pairwise(pieces)
    ]
    return [index for index, breaks_list in enumerate([False, *breaks, False][: len(pieces) + 1]) if not breaks_list]


def kind_of(piece: Piece) -> str:
    """Return "sentence", "item" or "example": pieces of one kind can take each other's place."""
    return "item" if piece.is_item else "example" if piece.is_example else "sentence"


def sections(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return the sections of a text. A title, or a line that introduces examples, is a part of none and comes alone."""
    top = max((piece.level for piece in pieces), default=0)
    parts: list[list[Piece]] = []
    for before, piece in zip([None, *pieces], pieces, strict=False):
        starts = (
            piece.level > 0
            if top
            else piece.gap == GAPS[-1] and not (before and before.text.endswith(":") and piece.is_item)
        )
        if starts or not parts:
            parts.append([])
        parts[-1].append(piece)
    return parts


def movable_sections(parts: Sequence[Sequence[Piece]]) -> list[int]:
    """Return the indices of the sections that can go elsewhere: those that say something."""
    return [i for i, part in enumerate(parts) if not part[-1].level and not part[-1].text.endswith(":")]


def joined(parts: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Return the pieces of sections in any order, each section in a paragraph of its own."""
    return [replace(piece, gap=GAPS[-1] if i == 0 else piece.gap) for part in parts for i, piece in enumerate(part)]


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
