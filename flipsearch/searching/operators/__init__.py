"""The operators, one module per family; `flipsearch.core.protocols.Operator` is the contract that each must keep.

To add one: a class in a module here, and its line in OPERATORS. An installed package adds one by an entry point, which
names a class or function that returns the operator when it is called without arguments:

    [project.entry-points."flipsearch.operators"]
    shout = "my_package:Shout"
"""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

from flipsearch.core.errors import PluginError
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Placement
from flipsearch.judging.contract import plugin_errors_as
from flipsearch.searching.operators.edits import (
    ChangeAxis,
    ChangePlacement,
    Crossover,
    DropPiece,
    MovePiece,
    RepeatPiece,
    Reword,
    Shorten,
    SwapPieces,
)
from flipsearch.searching.operators.rewrite import Rewrite
from flipsearch.templating.template import Template

__all__ = ["ENTRY_POINTS", "OPERATORS", "make_operators"]

ENTRY_POINTS = "flipsearch.operators"
OPERATORS: tuple[Callable[[], Operator], ...] = (
    DropPiece,
    SwapPieces,
    RepeatPiece,
    MovePiece,
    Shorten,
    Crossover,
    Reword,
)
"""Operators that need nothing but parents, in the order in which chance chooses among them: add new ones at the end."""


def make_operators(templates: Sequence[Template], placements: Sequence[Placement] = ()) -> list[Operator]:
    """Return all operators but `rewrite`, which needs a model: those of this package, then the installed ones by name.

    Texts go to `placements` only, () is all. Raises PluginError for an installed operator that is broken or whose name
    is taken.
    """
    operators: list[Operator] = [ChangeAxis(templates), ChangePlacement(templates, placements)]
    operators += [make() for make in OPERATORS]
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value)):
        if entry.name in {Rewrite.name, *(operator.name for operator in operators)}:
            raise PluginError(f"operator '{entry.name}' ({entry.value}): another operator has this name; rename it.")
        operators.append(_load(entry))
    return operators


def _load(entry: EntryPoint) -> Operator:
    what = f"operator '{entry.name}' ({entry.value})"
    with plugin_errors_as(PluginError, f"{what} fails when loaded"):
        operator: Operator = entry.load()()
    name, num_parents = (getattr(operator, attribute, None) for attribute in ("name", "num_parents"))
    if name != entry.name:
        raise PluginError(f"{what} has the name {name!r}, expected that of its entry point; rename one of them.")
    if not isinstance(num_parents, int) or num_parents < 1 or not callable(getattr(operator, "make", None)):
        raise PluginError(f"{what} is no operator: expected num_parents of 1 or more and a method make.")
    return operator
