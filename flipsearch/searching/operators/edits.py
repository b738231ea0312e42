"""Children: contexts with their lineage set, or none where nothing came of it.

Edits of whole sentences and list items: leave one out, exchange two, say one again, move one.

Changes of one slot: a template's parameter, or the place where a text stands.

Crosses two contexts at their sentences.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from flipsearch.core.errors import TemplateError
from flipsearch.core.records import PLACEMENTS, Context, Placement
from flipsearch.core.studies import Parent
from flipsearch.searching.filters import normalised
from flipsearch.searching.operators.pieces import (
    Piece,
    inserted,
    join,
    movable,
    num_words,
    places,
    seams,
    split,
    without,
)
from flipsearch.templating.template import Template


def edited(operator: str, parents: Sequence[Parent], text: str) -> Context | None:
    """Return the child with this text in the first parent's place; None if it is empty or what a parent says.

    Template and params are left behind: they no longer give the text.
    """
    return child(operator, parents, Context(text, parents[0].context.placement))


def child(operator: str, parents: Sequence[Parent], context: Context) -> Context | None:
    """Return `context` as the child of `parents`; None if it is without text or the same as one of them."""
    ids = tuple(parent.context.context_id for parent in parents)
    if not context.text.strip() or context.context_id in ids:
        return None
    return replace(context, operator=operator, parents=ids)


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


class Axis:
    """Gives one parameter of the parent's template another value and renders it again."""

    name = "axis"
    num_parents = 1

    def __init__(self, templates: Sequence[Template]) -> None:
        self._templates = {template.name: template for template in templates}

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the child with its template and new params; None for an edited text, or if nothing can change."""
        parent = parents[0].context
        template = self._templates.get(parent.template)
        params = dict(parent.params)
        if template is None or not _gives(template, parent):
            return None
        free = [param for param in template.params if len(param.choices) > 1]
        for param in rng.sample(free, len(free)):
            value = rng.choice([choice for choice in param.choices if choice != params.get(param.name)])
            made = child(self.name, parents, template.context(params | {param.name: value}, parent.placement))
            if made is not None:
                return made
        return None


class Place:
    """Puts the same text elsewhere: where its template allows, an edited text anywhere in `placements`."""

    name = "place"
    num_parents = 1

    def __init__(self, templates: Sequence[Template], placements: Sequence[Placement] = ()) -> None:
        self._templates = {template.name: template for template in templates}
        self._placements = tuple(placements) or PLACEMENTS

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the child in another place, with its template and params; None if there is no other place."""
        parent = parents[0].context
        template = self._templates.get(parent.template)
        allowed = template.placements if template else PLACEMENTS
        others = [place for place in self._placements if place in allowed and place != parent.placement]
        if not others:
            return None
        where = Context(parent.text, rng.choice(others), parent.template, parent.params, parent.axes)
        return child(self.name, parents, where)


def _gives(template: Template, context: Context) -> bool:
    """Whether the template renders this context; its file may have changed since, or want a text of the program's."""
    try:
        return template.context(dict(context.params), context.placement).context_id == context.context_id
    except TemplateError:
        return False


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
