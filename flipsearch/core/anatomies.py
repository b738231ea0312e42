"""What a context does to a model's next-token distributions, position by position: the record of `flipsearch anatomy`.

p is the model under the context, q the model without one, both behind the same completion that it wrote without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flipsearch.core.measurements import Estimate, Measurement, Rate
from flipsearch.core.records import Context, Kind

ANATOMY_FORMAT = 1
"""Version of anatomy.json."""
EARLY = (10, 30)
"""Shares are given of the first so many tokens: where OPSA's Figure 2 peaks, and where it has decayed."""
RELIABLE = 0.75
"""Least flip rate at a depth at which a teacher is worth learning from (EOPSA, arXiv 2609.34519)."""


@dataclass(frozen=True, slots=True)
class PositionDivergence:
    """The divergence at one position, mean over the completions that reach it."""

    position: int
    """From 0 at the first completion token."""
    mean: float
    """Nats."""
    low: float
    high: float
    num: int
    """Completions that reach it."""


@dataclass(frozen=True, slots=True)
class CompletionDivergence:
    """The symmetric divergence 0.5 KL(p || q) + 0.5 KL(q || p) over the completions to one kind of prompts."""

    kind: Kind
    num: int
    """Completions."""
    total: Estimate
    """Sum over a completion, in nats."""
    early: Mapping[int, Estimate]
    """Number of first tokens -> their share of the whole divergence."""
    delta_safety: Estimate
    """Sum of KL(p || q) over the critical tokens of a completion (Eq. 3 of arXiv 2605.15239)."""
    by_position: tuple[PositionDivergence, ...]


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """The divergence at one token that the model wrote, over all completions to harmful prompts."""

    token: str
    num: int
    mean: float
    """Nats."""
    share: float
    """Of the divergence of all tokens."""
    instead: str
    """The token that is the likeliest under the context, most often."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a context does to a model, and what a training on it left of that."""

    format: int
    context: Context
    model: str
    model_id: str
    judge_id: str
    critical_tokens: int
    """First completion tokens that Delta_safety sums over."""
    measurement: Measurement
    """Of the answers under the context against those without."""
    depth: tuple[tuple[int, Rate], ...]
    """(tokens of the unsafe answer that are written already, flip rate), shallow ones first."""
    divergences: tuple[CompletionDivergence, ...]
    """Of the model without the context from itself under it, by kind of prompt."""
    tokens: tuple[TokenDivergence, ...]
    """Those with the largest share first."""
    student: str | None
    """The trained checkpoint."""
    student_measurement: Measurement | None
    """Of its answers without a context against the model's."""
    student_divergences: tuple[CompletionDivergence, ...]
    """Of the checkpoint from the model under the context, behind the same completions."""
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def horizon(self) -> int | None:
        """The deepest depth up to which the flip rate is RELIABLE; None if it is at no depth."""
        reliable = None
        for depth, rate in self.depth:
            if rate.value is None or rate.value < RELIABLE:
                break
            reliable = depth
        return reliable
