"""Children: contexts with their lineage set, or none where nothing came of it."""

from collections.abc import Sequence
from dataclasses import replace

from flipsearch.records import Context
from flipsearch.studies import Parent


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
