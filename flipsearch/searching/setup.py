"""What a study searches, resolved and checked before any model is loaded: its prompts, operators, placebos, and space.

The space is template x its parameters x placement, as Optuna's conditional categorical parameters:

    template                  one of the templates
    <template>.placement      where its text goes
    <template>.<parameter>    one of the values that its head declares

To add an operator: a class in a module of operators/, and its line in OPERATORS. An installed package adds one by an
entry point, which names a class or function that returns the operator when it is called without arguments:

    [project.entry-points."flipsearch.operators"]
    shout = "my_package:Shout"
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from flipsearch.config import SearchConfig
from flipsearch.core.errors import ConfigError, PluginError, StudyError
from flipsearch.core.protocols import Operator
from flipsearch.core.records import PLACEMENTS, Context, Placement, Prompt
from flipsearch.judging.contract import plugin_errors_as
from flipsearch.prompts.splitting import first_of_each_kind
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
from flipsearch.templating.library import PlaceboRow, TemplateLibrary, placebo_rows
from flipsearch.templating.template import Template

TEMPLATE = "template"
PLACEMENT = "placement"
START = "start"
"""In place of an operator: the context came with --start, its parameter "from" says from where."""
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
        self._choices: dict[str, dict[str, tuple[Any, ...]]] = {}
        for name, template in self._templates.items():
            for param in template.params:
                if param.given:
                    raise ConfigError(f"template '{name}' needs a text '{param.name}' and cannot be searched.")
                if param.name == PLACEMENT:
                    raise ConfigError(f"{template.path}: the parameter '{PLACEMENT}' has a reserved name; rename it.")
            where = tuple(placement for placement in template.placements if placement in allowed)
            self._choices[name] = {PLACEMENT: where} | {param.name: param.choices for param in template.params}
        self._sizes = {name: math.prod(map(len, choices.values())) for name, choices in self._choices.items()}
        self.names = list(self._templates)
        self._contexts: dict[str, Context] = {}
        """What was rendered before, by point: a search renders the same points again and again."""

    def without_same(self, same: Mapping[Placement, Placement]) -> "Space":
        """Return the space without placements that give the model what another allowed one gives it."""
        space = copy(self)
        space._choices = {
            name: choices | {PLACEMENT: tuple(p for p in choices[PLACEMENT] if same.get(p) not in choices[PLACEMENT])}
            for name, choices in self._choices.items()
        }
        space._sizes = {name: math.prod(map(len, choices.values())) for name, choices in space._choices.items()}
        return space

    def __len__(self) -> int:
        """Return the number of points; two points may render the same text."""
        return sum(self._sizes.values())

    def point(self, index: int) -> dict[str, Any]:
        """Return Optuna's parameters of one point, 0 <= index < len(self); IndexError outside.

        Within a template, the index is a number whose digits, one per parameter, choose the values.
        """
        for name, size in self._sizes.items():
            if index >= size:
                index -= size
                continue
            point = {TEMPLATE: name}
            for param, values in self._choices[name].items():
                index, digit = divmod(index, len(values))
                point[f"{name}.{param}"] = values[digit]
            return point
        raise IndexError("no such point in the space")

    def sample(self, name: str, rng: random.Random) -> dict[str, Any]:
        """Return a random point of one template."""
        chosen = {f"{name}.{param}": rng.choice(values) for param, values in self._choices[name].items()}
        return {TEMPLATE: name} | chosen

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
        name, key = point[TEMPLATE], repr(point)
        if key not in self._contexts:
            values = {param: point[f"{name}.{param}"] for param in self._choices[name]}
            placement = values.pop(PLACEMENT)
            self._contexts[key] = self._templates[name].context(values, placement)
        return self._contexts[key]


@dataclass(frozen=True, slots=True)
class SearchSetup:
    """The resolved inputs of a study."""

    config: SearchConfig
    space: Space
    placebos: tuple[PlaceboRow, ...]
    """The rows that show what texts without safety content do."""
    search: tuple[Prompt, ...]
    """The prompts that the search sees, in nested order."""
    confirm: tuple[Prompt, ...]
    """The sealed prompts, seen by the finalists and placebos alone."""
    operators: tuple[Operator, ...] = ()
    start: tuple[Context, ...] = ()
    """Contexts of other studies, tried before all others."""
    benign_contexts: tuple[Context, ...] = ()
    """Candidates for the context of benign prompts in training."""
    same_placements: Mapping[Placement, Placement] = field(default_factory=dict)
    """Placement -> another one that gives this model the same tokens: both are one arm."""

    @property
    def num_contexts(self) -> int:
        """Most contexts that are proposed; without operators, at most as many as the templates hold."""
        return self.config.num_contexts if self.operators else min(self.config.num_contexts, len(self.space))

    @property
    def num_finalists(self) -> int:
        """Most contexts that are measured on the confirm split."""
        return min(self.config.num_finalists, self.num_contexts)


def prepare_search(config: SearchConfig, library: TemplateLibrary, prompts: Sequence[Prompt]) -> SearchSetup:
    """Return the setup of a study over prompts that have their splits, each split in nested order.

    Raises PluginError for an unknown template or a broken operator, ConfigError for templates that cannot be searched,
    and StudyError for prompts without a harmful one in both splits or with one that is in two.
    """
    splits: list[tuple[Prompt, ...]] = []
    for split in ("search", "confirm"):
        chosen = first_of_each_kind([prompt for prompt in prompts if prompt.split == split], config.max_prompts)
        if not any(prompt.kind == "harmful" for prompt in chosen):
            raise StudyError(f"no harmful prompt in the {split} split (of {len(prompts)} prompts); give more prompts.")
        splits.append(chosen)
    search, confirm = splits
    if twice := {prompt.prompt_id for prompt in search} & {prompt.prompt_id for prompt in confirm}:
        raise StudyError(f"{len(twice)} prompts are both in search and in confirm; the sealed split must be unseen.")
    templates = library.select(config.templates)
    benign = [library[name].context() for name in library.names("benign")] if config.benign_context else []
    return SearchSetup(
        config=config,
        space=Space(templates, config.placements),
        placebos=placebo_rows(library),
        search=search,
        confirm=confirm,
        operators=tuple(make_operators(templates, config.placements)) if config.breed else (),
        benign_contexts=tuple(benign),
    )


def without_same_placements(setup: SearchSetup, same: Mapping[Placement, Placement]) -> tuple[SearchSetup, list[str]]:
    """Return the setup without placements that are `same` for its model as another, and a note of them."""
    if not same:
        return setup, []
    pairs = " and ".join(f"'{placement}' is the same tokens as '{other}'" for placement, other in same.items())
    note = f"To this model the placement {pairs}: a text in both places is one arm."
    return replace(setup, space=setup.space.without_same(same), same_placements=same), [note]


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
