"""What can be searched: template x its parameters x placement, as Optuna's conditional categorical parameters.

template                  one of the templates
<template>.placement      where its text goes
<template>.<parameter>    one of the values that its head declares
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from flipsearch.core.errors import ConfigError
from flipsearch.core.records import PLACEMENTS, Context, Placement
from flipsearch.templating.template import Template

TEMPLATE = "template"
PLACEMENT = "placement"


class Space:
    """All contexts that a set of templates can give; `placements` () allows every one that a template allows.

    Raises ConfigError, in one line, if nothing is left to search or a template cannot be searched.
    """

    def __init__(self, templates: Sequence[Template], placements: Sequence[Placement] = ()) -> None:
        allowed = placements or PLACEMENTS
        self._templates = {t.name: t for t in templates if set(t.placements) & set(allowed)}
        if not self._templates:
            names = ", ".join(t.name for t in templates) or "none"
            raise ConfigError(f"no template goes to {' or '.join(allowed)} (templates: {names}); name other ones.")
        self._choices = {name: _choices(t, allowed) for name, t in self._templates.items()}

    def __len__(self) -> int:
        """Return the number of points; two points may render the same text."""
        return sum(math.prod(map(len, choices.values())) for choices in self._choices.values())

    @property
    def names(self) -> list[str]:
        """The templates."""
        return list(self._templates)

    def point(self, index: int) -> dict[str, Any]:
        """Return Optuna's parameters of one point, 0 <= index < len(self)."""
        for name, choices in self._choices.items():
            size = math.prod(map(len, choices.values()))
            if index < size:
                return {TEMPLATE: name} | _decode(name, choices, index)
            index -= size
        raise IndexError("no such point in the space")

    def point_of(self, context: Context) -> dict[str, Any] | None:
        """Return the point at which a context was rendered; None for one that was not rendered from this space."""
        choices = self._choices.get(context.template, {})
        values = {PLACEMENT: context.placement, **dict(context.params)}
        if not choices or any(values.get(name) not in allowed for name, allowed in choices.items()):
            return None
        return {TEMPLATE: context.template} | {f"{context.template}.{name}": values[name] for name in choices}

    def distributions(self, point: Mapping[str, Any]) -> dict[str, CategoricalDistribution]:
        """Return what each parameter of a point was chosen from: the same for every point that has the parameter."""
        name = point[TEMPLATE]
        chosen = {f"{name}.{param}": values for param, values in self._choices[name].items()}
        return {key: CategoricalDistribution(values) for key, values in ({TEMPLATE: self.names} | chosen).items()}

    def suggest(self, trial: optuna.Trial) -> Context:
        """Let Optuna choose a point, and return the context there."""
        name = trial.suggest_categorical(TEMPLATE, self.names)
        for param, values in self._choices[name].items():
            trial.suggest_categorical(f"{name}.{param}", values)
        return self.context(trial.params)

    def context(self, point: Mapping[str, Any]) -> Context:
        """Return the context at a point; its text may be empty."""
        name = point[TEMPLATE]
        values = {param: point[f"{name}.{param}"] for param in self._choices[name]}
        placement = values.pop(PLACEMENT)
        return self._templates[name].context(values, placement)


def _choices(template: Template, allowed: Sequence[Placement]) -> dict[str, tuple[Any, ...]]:
    for param in template.params:
        if param.given:
            raise ConfigError(f"template '{template.name}' needs a text '{param.name}' and cannot be searched.")
        if param.name == PLACEMENT:
            raise ConfigError(f"{template.path}: the parameter '{PLACEMENT}' has the name of the place; rename it.")
    places = tuple(place for place in template.placements if place in allowed)
    return {PLACEMENT: places} | {param.name: param.choices for param in template.params}


def _decode(name: str, choices: Mapping[str, tuple[Any, ...]], index: int) -> dict[str, Any]:
    """Read `index` as a number whose digits, one a parameter, choose the values."""
    point = {}
    for param, values in choices.items():
        index, digit = divmod(index, len(values))
        point[f"{name}.{param}"] = values[digit]
    return point
