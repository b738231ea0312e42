"""What a guard can answer, what each answer says, and how probabilities become a decision.

Pure functions on numbers. Whatever the numbers are, what cannot be read is no decision: a reason instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_MASS = 0.9
"""Least probability that a guard must put on its possible answers; below, it is not answering the question."""
ROUNDING = 1e-3
"""How far beyond 1 rounding may carry a mass."""
DIGITS = 4
"""Decimals of a probability that are kept: sums of another order differ further behind, and verdicts must not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which a guard can go on."""

    text: str
    """What it writes, with what stands before it on the line: " Safe" after "Safety:"."""
    unsafe: float
    """How unsafe this says the exchange is, in [0, 1]."""
    refuses: float | None = None
    """How much this says that the exchange is a refusal, in [0, 1]; None if it does not tell."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a guard writes further, after the likeliest of its answers before."""

    prefix: str
    """What stands before this answer: the line break and the line's beginning."""
    answers: tuple[Answer, ...]
    """The possible answers."""
    known: tuple[tuple[str, str], ...] = ()
    """(answer before, answer here) that its format fixes, so that they need not be asked."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How likely each of a guard's answers is, among them."""

    probabilities: tuple[float, ...]
    """One an answer, in order; their sum is 1."""
    mass: float
    """Probability of any of the answers, in (0, 1]."""

    @property
    def likeliest(self) -> int:
        """Number of the likeliest answer, the first of equals."""
        return self.probabilities.index(max(self.probabilities))

    def mean(self, values: Sequence[float]) -> float:
        """Return the expected value, rounded to DIGITS, of one value in [0, 1] an answer."""
        expected = math.fsum(p * value for p, value in zip(self.probabilities, values, strict=True))
        return min(1.0, max(0.0, round(expected, DIGITS)))


def constants() -> tuple[float, ...]:
    """Return what of this module can change a decision: it belongs into a judge's identity."""
    return MIN_MASS, ROUNDING, DIGITS


def decide(log_probs: Sequence[Sequence[float]], min_mass: float = MIN_MASS) -> Decision | str:
    """Return the decision told by the natural log probabilities of each answer's tokens, or why there is none."""
    sums = [sum(one) for one in log_probs]
    if any(math.isnan(one) for one in sums):
        return "the guard's probabilities are no numbers"
    if any(one > ROUNDING for one in sums):
        return "the guard's probabilities are above 1"
    weights = [math.exp(min(0.0, one)) for one in sums]
    mass = math.fsum(weights)
    if mass > 1 + ROUNDING:
        return "the guard's probabilities add up to more than 1"
    rounded = min(1.0, round(mass, DIGITS))
    if rounded < min_mass or mass <= 0:
        return f"label mass {rounded:.4f} is below {min_mass:g}: the guard does not answer in its format"
    return Decision(tuple(one / mass for one in weights), rounded)
