"""Edits of whole sentences and list items: leave one out, exchange two, say one again, move one."""

import random
from collections.abc import Sequence
from dataclasses import replace

from flipsearch.records import Context
from flipsearch.searching.operators.children import edited
from flipsearch.searching.operators.pieces import Piece, inserted, join, movable, places, split, without
from flipsearch.studies import Parent


class Drop:
    """Leaves out one sentence or list item."""

    name = "drop"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent without one piece; None if it has but one."""
        pieces = _pieces(parents)
        if len(pieces) < 2:
            return None
        return edited(self.name, parents, join(without(pieces, rng.choice(movable(pieces)))))


class Swap:
    """Exchanges two sentences, or two items of lists."""

    name = "swap"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with two pieces in each other's place; None if no two are alike in kind."""
        pieces = _pieces(parents)
        groups = [[i for i in movable(pieces) if pieces[i].is_item is kind] for kind in (False, True)]
        able = [group for group in groups if len(group) > 1]
        if not able:
            return None
        one, other = rng.sample(rng.choice(able), 2)
        texts = pieces[one].text, pieces[other].text
        pieces[one], pieces[other] = replace(pieces[one], text=texts[1]), replace(pieces[other], text=texts[0])
        return edited(self.name, parents, join(pieces))


class Repeat:
    """Says one sentence again in another place: emphasis."""

    name = "repeat"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with one sentence said twice; None if it has none outside of lists."""
        pieces = _pieces(parents)
        able = [index for index in movable(pieces) if not pieces[index].is_item]
        if not able:
            return None
        piece = pieces[rng.choice(able)]
        place = rng.choice(places(pieces, piece))
        return edited(self.name, parents, join(inserted(pieces, place, piece)))


class Move:
    """Puts one sentence elsewhere, or one item elsewhere in a list."""

    name = "move"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with one piece in another place; None if there is no other."""
        pieces = _pieces(parents)
        if len(pieces) < 2:
            return None
        index = rng.choice(movable(pieces))
        rest = without(pieces, index)
        where = places(rest, pieces[index])
        texts = (join(inserted(rest, place, pieces[index])) for place in rng.sample(where, len(where)))
        before = join(pieces)
        return edited(self.name, parents, next((text for text in texts if text != before), ""))


def _pieces(parents: Sequence[Parent]) -> list[Piece]:
    return split(parents[0].context.text)
