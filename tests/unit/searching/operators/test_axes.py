"""Axis and place: one slot changes, the rest stays, and the child is still the template's."""

import random

from flipsearch.core.records import Context, Rate
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import Axis, Place
from tests.world import library, template

TEMPLATES = library(
    hollow=template("hollow", "{{ 'firm' if a else '' }}", "a = [true, false]"),
    twins=template("twins", "firm {{ 'too' if a else 'too' }}{{ b }}", "a = [true, false]\nb = [1, 2]"),
).select()
BY_NAME = {one.name: one for one in TEMPLATES}
SEEDS = range(40)


def parent(context: Context) -> Parent:
    return Parent(context, Rate(1, 2, 0.0, 1.0))


def test_one_parameter_changes() -> None:
    before = BY_NAME["harsh"].context({"times": 2, "edge": 1})
    found = set()
    for seed in SEEDS:
        child = Axis(TEMPLATES).make([parent(before)], random.Random(seed))
        assert child is not None
        assert child.text == BY_NAME["harsh"].render(dict(child.params))
        assert (child.template, child.axes, child.placement) == (before.template, before.axes, before.placement)
        found.add(tuple(child.params))
        assert len(set(child.params) - set(before.params)) == 1
    assert len(found) == 4


def test_a_change_that_shows_nothing_is_passed_over() -> None:
    before = BY_NAME["twins"].context()
    made = {Axis(TEMPLATES).make([parent(before)], random.Random(seed)) for seed in SEEDS}
    assert {child and child.text for child in made} == {"firm too2"}
    assert Axis(TEMPLATES).make([parent(BY_NAME["hollow"].context())], random.Random(0)) is None


def test_no_axis_where_the_template_does_not_give_the_text() -> None:
    plain = BY_NAME["plain"].context()
    for context in (
        Context(plain.text),
        Context("another text", plain.placement, plain.template, plain.params),
        Context(plain.text, "around", plain.template, plain.params),
        Context(plain.text, plain.placement, plain.template, (("times", 99),)),
        Context(plain.text, plain.placement, "gone", plain.params),
    ):
        assert Axis(TEMPLATES).make([parent(context)], random.Random(0)) is None


def test_the_place_changes_to_where_the_template_goes() -> None:
    before = BY_NAME["plain"].context({"times": 3})
    child = Place(TEMPLATES).make([parent(before)], random.Random(0))
    assert child is not None
    assert (child.placement, child.text) == ("before", before.text)
    assert (child.template, child.params) == (before.template, before.params)
    assert Place(TEMPLATES).make([parent(BY_NAME["harsh"].context())], random.Random(0)) is None


def test_an_edited_text_goes_anywhere_allowed() -> None:
    def where(*placements: str) -> set[str | None]:
        operator = Place(TEMPLATES, placements)  # type: ignore[arg-type]
        made = [operator.make([parent(Context("free"))], random.Random(seed)) for seed in SEEDS]
        return {None if child is None else child.placement for child in made}

    assert where() == {"before", "after", "around"}
    assert where("system", "after") == {"after"}
    assert where("system") == {None}
