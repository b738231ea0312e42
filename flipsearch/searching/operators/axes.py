"""Changes of one slot: a template's parameter, or the place where a text stands."""

import random
from collections.abc import Sequence

from flipsearch.errors import TemplateError
from flipsearch.records import PLACEMENTS, Context, Placement
from flipsearch.searching.operators.children import child
from flipsearch.studies import Parent
from flipsearch.templating.template import Template


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
