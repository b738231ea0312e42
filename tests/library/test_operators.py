"""Every built-in operator keeps the operator contract, and the contract notices operators that break it."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from flipsearch.core.measurements import Rate
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.rewrite import Rewrite
from flipsearch.searching.setup import make_operators
from flipsearch.templating.library import POCKET_CONTEXTS, load_library
from flipsearch.testing import OperatorContract

TEMPLATES = load_library(shipped=POCKET_CONTEXTS).select()


def write(instruction: str) -> str:
    """A model that repeats the parent, and adds a sentence which depends on all that it was shown."""
    current = instruction.split("<current>\n")[1].split("\n</current>")[0]
    return f"<think>\nHm.\n</think>\n<context>\n{current}\nBe good {len(instruction)} times.\n</context>"


def fresh_operators() -> dict[str, Operator]:
    return {operator.name: operator for operator in [*make_operators(TEMPLATES), Rewrite(write)]}


def test_the_built_in_ones() -> None:
    expected = "axis place drop swap repeat move shorten crossover reword rewrite"
    assert list(fresh_operators()) == expected.split()


@pytest.fixture(params=sorted(fresh_operators()))
def operator_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryOperator(OperatorContract):
    @pytest.fixture(autouse=True)
    def _use(self, operator_name: str) -> None:
        self.operator_name = operator_name
        self.moves = operator_name == "place"

    def make_operator(self) -> Operator:
        return fresh_operators()[self.operator_name]

    def parents(self) -> list[Parent]:
        if self.operator_name != "axis":
            return super().parents()
        return [Parent(template.context(), Rate(3, 8, 0.1, 0.7)) for template in TEMPLATES]


class Plain:
    """An operator that keeps the contract, for others to break."""

    name = "plain"
    num_parents = 1

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        parent = parents[0].context
        text = self.edit(parent.text, rng)
        ids = (parent.context_id,)
        return Context(text, parent.placement, operator=self.name, parents=ids) if text.strip() else None

    def edit(self, text: str, rng: random.Random) -> str:
        return f"{text} Be good {rng.randint(1, 3)} times." if text.strip() else ""


class Renders(Plain):
    def edit(self, text: str, rng: random.Random) -> str:
        return super().edit(text, rng).replace("{{ 7*7 }}", "49")


class Formats(Plain):
    def edit(self, text: str, rng: random.Random) -> str:
        return super().edit(text.format(), rng)


class UsesTheGlobalGenerator(Plain):
    def edit(self, text: str, rng: random.Random) -> str:
        return f"{text} {random.random()}"


class ChangesNothing(Plain):
    def edit(self, text: str, rng: random.Random) -> str:
        return text


class NeedsTwoSentences(Plain):
    def edit(self, text: str, rng: random.Random) -> str:
        return text.split(". ", 1)[1]


class Forgets(Plain):
    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        child = super().make(parents, rng)
        return child and replace(child, parents=())


class MovesAway(Plain):
    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        child = super().make(parents, rng)
        return child and replace(child, placement="after")


class KeepsTheParams(Plain):
    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        child = super().make(parents, rng)
        return child and replace(child, params=(("strength", "firm"),))


class EmptiesTheList(Plain):
    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        child = super().make(parents, rng)
        assert isinstance(parents, list)
        parents.clear()
        return child


class NeverApplies(Plain):
    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        return None


class TestPlainOperator(OperatorContract):
    def make_operator(self) -> Operator:
        return Plain()


@pytest.mark.parametrize(
    ("operator_class", "test"),
    [
        (Renders, "test_no_text_is_rendered"),
        (Formats, "test_parents_of_any_text_never_raise"),
        (UsesTheGlobalGenerator, "test_children_depend_on_the_generator_alone"),
        (ChangesNothing, "test_a_child_is_new_and_names_its_parents"),
        (NeedsTwoSentences, "test_parents_of_any_text_never_raise"),
        (Forgets, "test_a_child_is_new_and_names_its_parents"),
        (MovesAway, "test_a_child_is_new_and_names_its_parents"),
        (KeepsTheParams, "test_an_edited_text_has_no_template"),
        (EmptiesTheList, "test_parents_are_left_as_they_are"),
        (NeverApplies, "test_children_depend_on_the_generator_alone"),
    ],
)
def test_the_contract_catches(operator_class: type[Plain], test: str) -> None:
    class Contract(OperatorContract):
        def make_operator(self) -> Operator:
            return operator_class()

    with pytest.raises((AssertionError, KeyError, ValueError, IndexError)):
        getattr(Contract(), test)()
