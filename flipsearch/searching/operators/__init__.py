"""The built-in operators, one small module a family; `flipsearch.core.protocols.Operator` says what each must keep."""

from collections.abc import Sequence

from flipsearch.core.protocols import Operator
from flipsearch.core.records import Placement
from flipsearch.searching.operators.edits import Axis, Crossover, Drop, Move, Place, Repeat, Swap
from flipsearch.searching.operators.reword import Reword
from flipsearch.searching.operators.rewrite import Model, Rewrite
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
