"""What each operator is worth: the gain of its children over their parents, and who is asked next.

Gains are paired: child minus parent over the prompts that both have seen. Parents are the best so far *on these very
prompts*, so their rates read too high and gains too low; that is the same for all operators and does not decide
between them. It knows neither contexts nor models.

Who breeds the next contexts: operators, chosen by what they have brought, on parents from the elite.

    elite --parents by rank--> operator --child--> hygiene --> contexts      gains --learn--> credit

The same children for the same seed, elites and gains. It measures nothing, and asks no model but through an operator.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from flipsearch.core.errors import FlipsearchError, PluginError
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Measurement
from flipsearch.core.studies import OperatorCredit, Parent
from flipsearch.searching.filters import ContextFilter
from flipsearch.statistics.intervals import mean_interval

PRIOR_MEAN, PRIOR_SPREAD = 0.03, 0.05
"""Improvement expected of an operator that was not tried, and how far it may be off: new ones are worth a try."""
NOISE = 0.08
"""Standard deviation of one child's improvement around its operator's."""


@dataclass(slots=True)
class _Tally:
    num_children: int = 0
    num_filtered: int = 0
    gains: list[float] = field(default_factory=list)
    improvements: list[float] = field(default_factory=list)


class Credit:
    """Counts and gains by operator, and a choice among operators that favours what pays.

    Thompson sampling (Thompson 1933, doi:10.1093/biomet/25.3-4.285) on the mean *improvement*, max(gain, 0): a search
    keeps the better of child and parent, so that a child that is far worse costs no more than one that is a little
    worse, and an operator that seldom but clearly improves is worth more than one that changes nothing. A child over
    the over-refusal cap cannot win and improves nothing, whatever its gain.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._tallies = {name: _Tally() for name in names}

    def count_child(self, name: str) -> None:
        """Count a child that goes to the race."""
        self._tallies[name].num_children += 1

    def count_filtered(self, name: str) -> None:
        """Count a child that the hygiene gates kept out."""
        self._tallies[name].num_filtered += 1

    def add_gain(self, name: str, gain: float, *, admissible: bool = True) -> None:
        """Add the gain of a child that was raced, within the cap or not; ValueError unless it is in [-1, 1]."""
        if not -1 <= gain <= 1:
            raise ValueError(f"expected a gain in [-1, 1], got {gain}.")
        self._tallies[name].gains.append(gain)
        self._tallies[name].improvements.append(max(gain, 0.0) if admissible else 0.0)

    def choose(self, names: Sequence[str], rng: random.Random) -> str:
        """Return the name that is best under one draw of what every operator is worth."""
        draws = {name: rng.gauss(*self._worth(name)) for name in names}
        return max(names, key=lambda name: draws[name])

    def rows(self) -> tuple[OperatorCredit, ...]:
        """Return one row an operator, the most gainful first, those without a raced child last."""
        rows = [_row(name, tally) for name, tally in self._tallies.items()]
        return tuple(sorted(rows, key=lambda row: (row.mean_gain is None, -(row.mean_gain or 0.0), row.operator)))

    def _worth(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the improvement, normal prior and noise."""
        improvements = self._tallies[name].improvements
        precision = 1 / PRIOR_SPREAD**2 + len(improvements) / NOISE**2
        mean = (PRIOR_MEAN / PRIOR_SPREAD**2 + sum(improvements) / NOISE**2) / precision
        return mean, precision**-0.5


def paired_gain(child: Measurement, parent: Measurement) -> float | None:
    """Return flip rate of child minus parent over the harmful prompts that both have scored; None if there are none."""
    one, other = child.flipped_by_prompt, parent.flipped_by_prompt
    both = [one[id] - other[id] for id in one if id in other]
    return sum(both) / len(both) if both else None


def _row(name: str, tally: _Tally) -> OperatorCredit:
    gain = mean_interval(tally.gains, -1.0, 1.0)
    return OperatorCredit(
        operator=name,
        num_children=tally.num_children,
        num_filtered=tally.num_filtered,
        num_raced=len(tally.gains),
        num_better=sum(one > 0 for one in tally.improvements),
        mean_gain=gain.value,
        low=gain.low,
        high=gain.high,
    )


PATIENCE = 6
"""Failures (not applicable, or kept out) after which an operator rests for the rest of a call."""


class Breeder:
    """Makes contexts that were not there before, and learns which operators pay.

    Raises PluginError if two operators have one name.
    """

    def __init__(self, operators: Sequence[Operator], filters: ContextFilter, seed: int) -> None:
        self._operators = {operator.name: operator for operator in operators}
        if len(self._operators) < len(operators):
            raise PluginError(f"two operators have one name: {', '.join(sorted(o.name for o in operators))}.")
        self._filters = filters
        self._random = random.Random(seed)
        self._credit = Credit(list(self._operators))
        self._operator_of: dict[str, str] = {}

    def breed(self, elite: Sequence[Parent], num: int) -> list[Context]:
        """Return up to `num` new children of the elite, best parent first; fewer if all operators run dry.

        Raises PluginError for an operator that fails.
        """
        for parent in elite:
            self._filters.add(parent.context)
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
        if self._filters.objection(child) is not None:
            self._credit.count_filtered(operator.name)
            return None
        self._filters.add(child)
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
