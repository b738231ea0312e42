"""What each operator is worth: the gain of its children over their parents, and who is asked next.

Gains are paired: child minus parent over the prompts that both have seen. Parents are the best so far *on these very
prompts*, so their rates read too high and gains too low; that is the same for all operators and does not decide
between them. It knows neither contexts nor models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flipsearch.records import Label, Measurement
from flipsearch.statistics.means import mean_interval
from flipsearch.studies import OperatorCredit

PRIOR_MEAN, PRIOR_SPREAD = 0.03, 0.05
"""Improvement expected of an operator that was not tried, and how far it may be off: new ones are worth a try."""
NOISE = 0.08
"""Standard deviation of one child's improvement around its operator's."""


@dataclass(slots=True)
class _Tally:
    num_children: int = 0
    num_barred: int = 0
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

    def count_barred(self, name: str) -> None:
        """Count a child that the hygiene gates kept out."""
        self._tallies[name].num_barred += 1

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
    one, other = _flipped(child), _flipped(parent)
    both = [one[id] - other[id] for id in one if id in other]
    return sum(both) / len(both) if both else None


def _flipped(measurement: Measurement) -> Mapping[str, int]:
    scored = [flip for flip in measurement.flips if flip.before is Label.UNSAFE and flip.after is not Label.UNSCORED]
    return {flip.prompt_id: int(flip.flipped) for flip in scored if flip.kind == "harmful"}


def _row(name: str, tally: _Tally) -> OperatorCredit:
    gain = mean_interval(tally.gains, -1.0, 1.0)
    return OperatorCredit(
        operator=name,
        num_children=tally.num_children,
        num_barred=tally.num_barred,
        num_raced=len(tally.gains),
        num_better=sum(one > 0 for one in tally.improvements),
        mean_gain=gain.value,
        low=gain.low,
        high=gain.high,
    )
