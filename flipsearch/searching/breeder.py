"""Breeds contexts: operators, chosen at random, make children of the parents that they are given.

    parents --sampled by weight--> operator --child--> filter --> contexts

The same children for the same seed and parents. It measures nothing, and calls no model but through an operator.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from flipsearch.core.errors import PluginError
from flipsearch.core.measurements import Measurement
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context
from flipsearch.core.studies import OperatorGain, Parent
from flipsearch.judging.contract import plugin_errors_as
from flipsearch.measuring.measure import flip_difference
from flipsearch.searching.filters import ContextFilter
from flipsearch.statistics.intervals import mean_interval

PER_COSTLY = 24
"""Children for each one that a model makes: few, and all of those race."""
PATIENCE = 6
"""Failures (not applicable, or filtered) after which an operator rests for the rest of a call."""


class Breeder:
    """Makes contexts that did not exist before, and counts by how much each operator's children are better.

    Raises PluginError if two operators have one name.
    """

    def __init__(self, operators: Sequence[Operator], context_filter: ContextFilter, seed: int) -> None:
        self._operators = {operator.name: operator for operator in operators}
        if len(self._operators) < len(operators):
            raise PluginError(f"two operators have one name: {', '.join(sorted(o.name for o in operators))}.")
        self._filter = context_filter
        self._random = random.Random(seed)
        self.gains = OperatorGains(list(self._operators))
        self._operator_of: dict[str, str] = {}

    def breed(self, parents: Sequence[Parent], num: int, weights: Sequence[float] = ()) -> list[Context]:
        """Return up to `num` new children; fewer if all operators run dry.

        Parents are sampled by `weights`, () is all alike.

        Raises PluginError for an operator that fails.
        """
        for parent in parents:
            self._filter.add(parent.context)
        children: list[Context] = []
        failures = {name: 0 for name, operator in self._operators.items() if operator.num_parents <= len(parents)}
        num_costly = 0
        while len(children) < num:
            able = [name for name, count in failures.items() if count < PATIENCE]
            if num_costly >= max(1, num // PER_COSTLY):
                able = [name for name in able if not self.is_costly(name)]
            if not able:
                break
            name = self._random.choice(able)
            num_costly += self.is_costly(name)
            child = self._make_child(self._operators[name], parents, weights or [1.0] * len(parents))
            if child is None:
                failures[name] += 1
            else:
                children.append(child)
        return children

    def is_costly(self, operator: str) -> bool:
        """Return whether the operator of this name calls a model for each child."""
        return bool(getattr(self._operators.get(operator), "is_costly", False))

    def learn(self, child: Context, measured: Measurement, parents: Sequence[Measurement], *, admissible: bool) -> None:
        """Count the gain of a child that raced over the better of its parents.

        `admissible` says whether the child is within the over-refusal cap. Contexts that were not bred here, and those
        without a prompt in common with a parent, are passed over.
        """
        # Parents are the best so far on these very prompts: gains are too low, for all operators alike.
        gains = [gain.value for parent in parents if (gain := flip_difference(measured, parent)) is not None]
        if child.context_id in self._operator_of and gains:
            self.gains.add(self._operator_of[child.context_id], min(gains), admissible=admissible)

    def _make_child(self, operator: Operator, able: Sequence[Parent], weights: Sequence[float]) -> Context | None:
        """One child by one operator, of different parents; None if it does not apply or its child is filtered."""
        left, parents = list(range(len(able))), []
        for _ in range(operator.num_parents):
            position = self._random.choices(range(len(left)), [weights[index] for index in left])[0]
            parents.append(able[left.pop(position)])
        # A generator of its own: what one operator samples does not change what the next ones do.
        rng = random.Random(self._random.getrandbits(64))
        with plugin_errors_as(PluginError, f"operator '{operator.name}' failed"):
            child = operator.make(parents, rng)
        if child is None:
            return None
        tally = self.gains.tallies[operator.name]
        if self._filter.objection(child) is not None:
            tally.num_filtered += 1
            return None
        self._filter.add(child)
        tally.num_children += 1
        self._operator_of[child.context_id] = operator.name
        return child


@dataclass(slots=True)
class Tally:
    """The children of one operator so far."""

    num_children: int = 0
    """Children that went to the race."""
    num_filtered: int = 0
    gains: list[float] = field(default_factory=list)
    num_better: int = 0
    """Children with a gain above 0 and within the cap."""


class OperatorGains:
    """Counts, per operator, its children and their gains in flip rate."""

    def __init__(self, names: Sequence[str]) -> None:
        self.tallies = {name: Tally() for name in names}

    def add(self, name: str, gain: float, *, admissible: bool = True) -> None:
        """Add the gain of a child that was raced, within the cap or not."""
        self.tallies[name].gains.append(gain)
        self.tallies[name].num_better += admissible and gain > 0

    def rows(self) -> tuple[OperatorGain, ...]:
        """Return one row per operator, the largest mean gain first, those without a raced child last."""
        rows = []
        for name, tally in self.tallies.items():
            gain = mean_interval(tally.gains, -1.0, 1.0)
            counts = tally.num_children, tally.num_filtered, len(tally.gains), tally.num_better
            rows.append(OperatorGain(name, *counts, gain.value, gain.low, gain.high))
        return tuple(sorted(rows, key=lambda row: (row.mean_gain is None, -(row.mean_gain or 0.0), row.operator)))
