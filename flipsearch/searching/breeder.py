"""Who breeds the next contexts: operators, chosen by what they have brought, on parents from the elite.

    elite --parents by rank--> operator --child--> hygiene --> contexts      gains --learn--> credit

The same children for the same seed, elites and gains. It measures nothing, and asks no model but through an operator.
"""

import random
from collections.abc import Sequence

from flipsearch.errors import FlipsearchError, PluginError
from flipsearch.protocols import Operator
from flipsearch.records import Context, Measurement
from flipsearch.searching.credit import Credit, paired_gain
from flipsearch.searching.hygiene import Hygiene
from flipsearch.studies import OperatorCredit, Parent

PATIENCE = 6
"""Failures (not applicable, or kept out) after which an operator rests for the rest of a call."""


class Breeder:
    """Makes contexts that were not there before, and learns which operators pay.

    Raises PluginError if two operators have one name.
    """

    def __init__(self, operators: Sequence[Operator], hygiene: Hygiene, seed: int) -> None:
        self._operators = {operator.name: operator for operator in operators}
        if len(self._operators) < len(operators):
            raise PluginError(f"two operators have one name: {', '.join(sorted(o.name for o in operators))}.")
        self._hygiene = hygiene
        self._random = random.Random(seed)
        self._credit = Credit(list(self._operators))
        self._operator_of: dict[str, str] = {}

    def breed(self, elite: Sequence[Parent], num: int) -> list[Context]:
        """Return up to `num` new children of the elite, best parent first; fewer if all operators run dry.

        Raises PluginError for an operator that fails.
        """
        for parent in elite:
            self._hygiene.add(parent.context)
        children: list[Context] = []
        failures = {name: 0 for name, operator in self._operators.items() if operator.num_parents <= len(elite)}
        while len(children) < num and (able := [name for name, count in failures.items() if count < PATIENCE]):
            name = self._credit.choose(able, self._random)
            child = self._make(self._operators[name], elite)
            if child is None:
                failures[name] += 1
            else:
                children.append(child)
        return children

    def learn(self, child_id: str, gain: float, *, admissible: bool = True) -> None:
        """Add the gain of a child: its flip rate minus its parent's over the prompts that both have seen.

        Of two parents the better one counts; `admissible` says whether the child is within the over-refusal cap. A
        child whose gain is not known is not learned from. ValueError for a context that was not bred here, and for a
        gain outside of [-1, 1].
        """
        if child_id not in self._operator_of:
            raise ValueError(f"context {child_id} was not bred here.")
        self._credit.add_gain(self._operator_of[child_id], gain, admissible=admissible)

    def learn_from(
        self, child: Context, measured: Measurement, parents: Sequence[Measurement], *, admissible: bool
    ) -> None:
        """Credit a child that was raced with its gain over the better of its parents; others are passed over."""
        gains = [gain for parent in parents if (gain := paired_gain(measured, parent)) is not None]
        if child.context_id in self._operator_of and gains:
            self.learn(child.context_id, min(gains), admissible=admissible)

    def credit(self) -> tuple[OperatorCredit, ...]:
        """Return what every operator has brought, the most gainful first."""
        return self._credit.rows()

    def _make(self, operator: Operator, elite: Sequence[Parent]) -> Context | None:
        parents = _draw(elite, operator.num_parents, self._random)
        # A generator of its own: what one operator draws does not change what the next ones do.
        rng = random.Random(self._random.getrandbits(64))
        try:
            child = operator.make(parents, rng)
        except FlipsearchError:
            raise
        except Exception as error:  # a plug-in can raise anything
            raise PluginError(f"operator '{operator.name}' failed: {type(error).__name__}: {error}.") from error
        if child is None:
            return None
        if self._hygiene.objection(child) is not None:
            self._credit.count_barred(operator.name)
            return None
        self._hygiene.add(child)
        self._credit.count_child(operator.name)
        self._operator_of[child.context_id] = operator.name
        return child


def _draw(elite: Sequence[Parent], num: int, rng: random.Random) -> list[Parent]:
    """Draw different parents, the first of n with weight n, the last with weight 1."""
    left = list(range(len(elite)))
    drawn = []
    for _ in range(num):
        weights = [len(elite) - rank for rank in left]
        drawn.append(left.pop(rng.choices(range(len(left)), weights)[0]))
    return [elite[rank] for rank in drawn]
