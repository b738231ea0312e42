"""Operators that follow rules: edits of a text's pieces and sections, and changes of a template's parameters.

Each returns one child, or None where it does not apply. In a text of several sections, drop, swap and move take a whole
section half of the time.
"""

import math
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flipsearch.core.errors import TemplateError
from flipsearch.core.records import PLACEMENTS, Context, Placement
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.pieces import (
    Piece,
    inserted,
    insertion_points,
    join,
    joined,
    kind_of,
    movable,
    movable_sections,
    num_words,
    seams,
    sections,
    split,
    without,
)
from flipsearch.templating.template import Template, normalised

MOST_GROWTH = 1.5
"""The longest child of a crossover, in words, as a multiple of its longer parent."""
FEWEST_SECTIONS = 3
"""A text of this many sections or more is also edited by whole ones."""
STRENGTHS = (0.1, 0.2, 0.4)
"""Shares of the words that are taken away by shortening."""
NUM_NEAREST = 3
"""One of this many smallest cuts is sampled, of those that are enough."""
PHRASES = Path(__file__).parent / "phrases.toml"
"""Groups of phrases that mean the same, two or more each."""
MOST_CHANGES = 3
"""Phrases replaced at a time."""
# A clause that follows another: "…, whatever reason is given." The part before it must be able to stand alone.
_CLAUSE = re.compile(r"(?P<before>\S+(?:\s+\S+){3,})(?:[,;]| [–—-]) [^,;–—]+?(?P<stop>[.!?…]?)$", re.DOTALL)
_NEEDS_MORE = re.compile(r"(?:if|when|before|after|while|although|unless|because|since|as|in|for|to)\b", re.IGNORECASE)


def child_of(operator: str, parents: Sequence[Parent], changed: Context | str) -> Context | None:
    """Return the child of `parents` with its lineage set; None if it has no text or is the same as one of them.

    A str is an edited text: it gets the first parent's placement and leaves template and params behind, since they no
    longer give it.
    """
    context = Context(changed, parents[0].context.placement) if isinstance(changed, str) else changed
    ids = tuple(parent.context.context_id for parent in parents)
    if not context.text.strip() or context.context_id in ids:
        return None
    return replace(context, operator=operator, parents=ids)


def _sections(pieces: Sequence[Piece], rng: random.Random) -> list[list[Piece]]:
    """Return the sections of a text if whole ones are to be edited this time, else none."""
    parts = sections(pieces)
    return parts if len(movable_sections(parts)) >= FEWEST_SECTIONS and rng.random() < 0.5 else []


class DropPiece:
    """Leaves out one sentence, list item, example or section."""

    name = "drop"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent without one piece; None if it has only one."""
        pieces = split(parents[0].context.text)
        if parts := _sections(pieces, rng):
            del parts[rng.choice(movable_sections(parts))]
            return child_of(self.name, parents, join(joined(parts)))
        able = movable(pieces)
        if len(pieces) < 2 or not able:
            return None
        return child_of(self.name, parents, join(without(pieces, rng.choice(able))))


class SwapPieces:
    """Exchanges two sentences, two items of lists, two examples or two sections."""

    name = "swap"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with two pieces exchanged; None if no two are of one kind."""
        pieces = split(parents[0].context.text)
        if parts := _sections(pieces, rng):
            first, second = rng.sample(movable_sections(parts), 2)
            parts[first], parts[second] = parts[second], parts[first]
            return child_of(self.name, parents, join(joined(parts)))
        kinds = ("sentence", "item", "example")
        groups = [[i for i in movable(pieces) if kind_of(pieces[i]) == kind] for kind in kinds]
        able = [group for group in groups if len(group) > 1]
        if not able:
            return None
        first, second = rng.sample(rng.choice(able), 2)
        texts = pieces[first].text, pieces[second].text
        pieces[first], pieces[second] = replace(pieces[first], text=texts[1]), replace(pieces[second], text=texts[0])
        return child_of(self.name, parents, join(pieces))


class RepeatPiece:
    """Says one sentence again elsewhere, for emphasis."""

    name = "repeat"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with one sentence said twice; None if it has none outside of lists and examples."""
        pieces = split(parents[0].context.text)
        able = [index for index in movable(pieces) if kind_of(pieces[index]) == "sentence"]
        if not able:
            return None
        piece = pieces[rng.choice(able)]
        point = rng.choice(insertion_points(pieces, piece))
        return child_of(self.name, parents, join(inserted(pieces, point, piece)))


class MovePiece:
    """Puts one sentence or section elsewhere, or one item or example elsewhere among the others."""

    name = "move"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with one piece moved; None if it fits nowhere else."""
        pieces = split(parents[0].context.text)
        if parts := _sections(pieces, rng):
            index, place = rng.sample(movable_sections(parts), 2)
            parts.insert(place, parts.pop(index))
            return child_of(self.name, parents, join(joined(parts)))
        able = movable(pieces)
        if len(pieces) < 2 or not able:
            return None
        index = rng.choice(able)
        rest = without(pieces, index)
        points = insertion_points(rest, pieces[index])
        texts = (join(inserted(rest, point, pieces[index])) for point in rng.sample(points, len(points)))
        before = join(pieces)
        return child_of(self.name, parents, next((text for text in texts if text != before), ""))


class Shorten:
    """Takes away a share of the words, one of `strengths`, and as little more as possible.

    What goes is a trailing clause, an item, a sentence, an example, a section, or several of them. ValueError for a
    strength that is not in (0, 1).
    """

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
            size = num_words(pieces)
            cuts = sorted(((size - num_words(left), left) for left in _shorter(pieces)), key=lambda cut: cut[0])
            if not cuts:
                return None
            enough = [cut for cut in cuts if cut[0] >= to_go]
            lost, pieces = rng.choice(enough[:NUM_NEAREST]) if enough else cuts[-1]
            to_go -= lost
        return child_of(self.name, parents, join(pieces))


def _shorter(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return a text after each cut that leaves something to say: without a piece, a section or a clause."""
    left = [without(pieces, index) for index in movable(pieces)] if len(pieces) > 1 else []
    parts = sections(pieces)
    if len(able := movable_sections(parts)) >= FEWEST_SECTIONS:
        left += [joined([*parts[:index], *parts[index + 1 :]]) for index in able]
    for index, piece in enumerate(pieces):
        match = _CLAUSE.match(piece.text)
        if match and not piece.is_example and not _NEEDS_MORE.match(piece.text):
            left.append([*pieces[:index], replace(piece, text=match["before"] + match["stop"]), *pieces[index + 1 :]])
    return left


class Crossover:
    """All sentences of both parents without repeats, or the head of one with the tail of the other.

    The order within each parent is kept, and the child has the first parent's placement. A child that is too long loses
    randomly sampled sections, or sentences where it has few sections.
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
        known = {normalised(piece.text) for piece in head}
        new = [piece for piece in tail if normalised(piece.text) not in known]
        # The first new piece continues the head's last paragraph, unless it is a heading.
        pieces = [*head, *(replace(piece, gap=piece.gap if piece.level else "\n") for piece in new[:1]), *new[1:]]
        while num_words(pieces) > most and len(pieces) > 1:
            parts = sections(pieces)
            if len(able := movable_sections(parts)) >= FEWEST_SECTIONS:
                del parts[rng.choice(able)]
                pieces = joined(parts)
            else:
                pieces = without(pieces, rng.choice(movable(pieces) or [len(pieces) - 1]))
        return child_of(self.name, parents, join(pieces))


class ChangeAxis:
    """Gives one parameter of the parent's template another value and renders it again."""

    name = "axis"
    num_parents = 1

    def __init__(self, templates: Sequence[Template]) -> None:
        self._templates = {template.name: template for template in templates}

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the child with its template and new params; None for an edited text, or if nothing can change."""
        parent = parents[0].context
        template, params = self._templates.get(parent.template), dict(parent.params)
        if template is None:
            return None
        try:
            if template.context(params, parent.placement).context_id != parent.context_id:
                return None
        except TemplateError:  # its file may have changed since, or it needs a text given by the program
            return None
        varied = [param for param in template.params if len(param.choices) > 1]
        for param in rng.sample(varied, len(varied)):
            value = rng.choice([choice for choice in param.choices if choice != params.get(param.name)])
            changed = template.context(params | {param.name: value}, parent.placement)
            if child := child_of(self.name, parents, changed):
                return child
        return None


class ChangePlacement:
    """Puts the same text elsewhere: where its template allows, an edited text anywhere in `placements` (() is all)."""

    name = "place"
    num_parents = 1

    def __init__(self, templates: Sequence[Template], placements: Sequence[Placement] = ()) -> None:
        self._templates = {template.name: template for template in templates}
        self._placements = tuple(placements) or PLACEMENTS

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the child at another placement, with its template and params; None if there is no other."""
        parent = parents[0].context
        template = self._templates.get(parent.template)
        allowed = template.placements if template else PLACEMENTS
        others = [name for name in self._placements if name in allowed and name != parent.placement]
        if not others:
            return None
        return child_of(self.name, parents, replace(parent, placement=rng.choice(others)))


class Reword:
    """Replaces one to three phrases by others of their group; a capital at the start stays one."""

    name = "reword"
    num_parents = 1

    def __init__(self, groups: Sequence[Sequence[str]] | None = None) -> None:
        groups = tomllib.loads(PHRASES.read_text(encoding="utf-8"))["groups"] if groups is None else groups
        self._group = {phrase.lower(): tuple(group) for group in groups for phrase in group}
        # The longest first: a phrase may begin like a shorter one.
        listed = sorted(self._group, key=lambda phrase: (-len(phrase), phrase))
        self._any = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)", re.IGNORECASE)

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with other phrases; None if it has none of the table."""
        text = parents[0].context.text
        matches = [match for match in self._any.finditer(text) if match[0].lower() in self._group]
        if not matches:
            return None
        chosen = rng.sample(matches, rng.randint(1, min(MOST_CHANGES, len(matches))))
        for match in sorted(chosen, key=lambda match: -match.start()):
            phrase = match[0].lower()
            synonym = rng.choice([synonym for synonym in self._group[phrase] if synonym.lower() != phrase])
            if match[0][0].isupper():
                synonym = synonym[0].upper() + synonym[1:]
            text = text[: match.start()] + synonym + text[match.end() :]
        return child_of(self.name, parents, text)
