"""Crosses two contexts at their sentences."""

import random
from collections.abc import Sequence
from dataclasses import replace

from flipsearch.records import Context
from flipsearch.searching.hygiene import normalised
from flipsearch.searching.operators.children import edited
from flipsearch.searching.operators.pieces import Piece, join, movable, num_words, seams, split, without
from flipsearch.studies import Parent

MOST_GROWTH = 1.5
"""The longest child, in words, as a multiple of its longer parent."""


class Crossover:
    """All sentences of both parents without repeats, or the head of one with the tail of the other.

    The order within each parent is kept, and the child stands where the first parent stands. Too long a child loses
    sentences drawn at random.
    """

    name = "crossover"
    num_parents = 2

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return a child of both; None if it would be the same as one of them."""
        both = [split(parent.context.text) for parent in parents]
        most = int(MOST_GROWTH * max(map(num_words, both)))
        rng.shuffle(both)
        head, tail = both
        if not head or not tail:
            return None
        if rng.random() < 0.5:
            head, tail = head[: rng.choice(seams(head)[1:])], tail[rng.choice(seams(tail)[:-1]) :]
        return edited(self.name, parents, join(_capped(_union(head, tail), most, rng)))


def _union(head: Sequence[Piece], tail: Sequence[Piece]) -> list[Piece]:
    """All pieces in order, none that was said; the first of the tail goes on in the head's last paragraph."""
    said = {normalised(piece.text) for piece in head}
    new = [piece for piece in tail if normalised(piece.text) not in said]
    return [*head, *(replace(piece, gap="\n") for piece in new[:1]), *new[1:]]


def _capped(pieces: list[Piece], most: int, rng: random.Random) -> list[Piece]:
    while num_words(pieces) > most and len(pieces) > 1:
        pieces = without(pieces, rng.choice(movable(pieces)))
    return pieces
