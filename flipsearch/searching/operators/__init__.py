"""The built-in operators, one small module a family; `flipsearch.protocols.Operator` says what each must keep."""

from collections.abc import Sequence

from flipsearch.protocols import Operator
from flipsearch.records import Placement
from flipsearch.searching.operators.axes import Axis, Place
from flipsearch.searching.operators.crossover import Crossover
from flipsearch.searching.operators.reword import Reword
from flipsearch.searching.operators.rewrite import Model, Rewrite
from flipsearch.searching.operators.sentences import Drop, Move, Repeat, Swap
from flipsearch.searching.operators.shorten import Shorten
from flipsearch.templating.template import Template

__all__ = ["built_in"]


def built_in(
    templates: Sequence[Template], placements: Sequence[Placement] = (), writer: Model | None = None
) -> list[Operator]:
    """Return every operator; `rewrite` only with a model that writes, and texts only go to `placements` (() is all)."""
    without_model: list[Operator] = [
        Axis(templates),
        Place(templates, placements),
        Drop(),
        Swap(),
        Repeat(),
        Move(),
        Shorten(),
        Crossover(),
        Reword(),
    ]
    return without_model if writer is None else [*without_model, Rewrite(writer)]
