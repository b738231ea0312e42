"""Makes a context shorter by the least that is enough: a trailing clause, a list item, a sentence, or several."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import edited
from flipsearch.searching.operators.pieces import Piece, join, movable, num_words, split, without

STRENGTHS = (0.1, 0.2, 0.4)
"""Shares of the words that go."""
NUM_NEAREST = 3
"""Of the cuts that are enough, so many of the smallest are drawn from."""
# A clause that follows another: "…, whatever reason is given." The part before it must be able to stand alone.
_CLAUSE = re.compile(r"(?P<before>\S+(?:\s+\S+){3,})(?:[,;]| [–—-]) [^,;–—]+?(?P<stop>[.!?…]?)$", re.DOTALL)
_NEEDS_MORE = re.compile(r"(?:if|when|before|after|while|although|unless|because|since|as|in|for|to)\b", re.IGNORECASE)


class Shorten:
    """Takes away a share of the words, one of `strengths`, and as little more as it can."""

    name = "shorten"
    num_parents = 1

    def __init__(self, strengths: Sequence[float] = STRENGTHS) -> None:
        if not strengths or not all(0 < strength < 1 for strength in strengths):
            raise ValueError(f"expected strengths between 0 and 1, got {list(strengths)}.")
        self._strengths = tuple(strengths)

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent made shorter; None if it cannot lose so much without losing everything."""
        pieces = split(parents[0].context.text)
        to_go = math.ceil(rng.choice(self._strengths) * num_words(pieces))
        while to_go > 0:
            cuts = sorted(_cuts(pieces), key=lambda cut: cut.size)
            if not cuts:
                return None
            enough = [cut for cut in cuts if cut.size >= to_go]
            cut = rng.choice(enough[:NUM_NEAREST]) if enough else cuts[-1]
            to_go -= cut.size
            pieces = _without(pieces, cut)
        return edited(self.name, parents, join(pieces))


@dataclass(frozen=True, slots=True)
class _Cut:
    size: int
    """Words that it takes away."""
    index: int
    """The piece."""
    left: str = ""
    """What is left of the piece."""


def _cuts(pieces: Sequence[Piece]) -> list[_Cut]:
    """Every clause, item and sentence without which the text still says something."""
    able = movable(pieces) if len(pieces) > 1 else []
    whole = [_Cut(num_words([pieces[index]]), index) for index in able]
    shorter = [(index, _without_clause(piece.text)) for index, piece in enumerate(pieces)]
    return [*whole, *(_Cut(num_words([pieces[i]]) - len(left.split()), i, left) for i, left in shorter if left)]


def _without(pieces: Sequence[Piece], cut: _Cut) -> list[Piece]:
    if not cut.left:
        return without(pieces, cut.index)
    return [replace(piece, text=cut.left) if i == cut.index else piece for i, piece in enumerate(pieces)]


def _without_clause(text: str) -> str:
    found = _CLAUSE.match(text)
    return "" if found is None or _NEEDS_MORE.match(text) else found["before"] + found["stop"]
