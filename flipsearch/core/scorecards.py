"""The records of an evaluation: what a scorecard holds.

    answers of two models --marks--> Measured --pairs--> Score --sets--> Composite --> Scorecard

All are frozen, like those in records.py, and what reports them reads nothing else. This module knows nothing of models,
files or statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flipsearch.core.records import Estimate, Sampling, Scope

Metric = Literal["harmful_rate", "over_refusal_rate", "reasoning_accuracy"]
METRICS: tuple[Metric, ...] = ("harmful_rate", "over_refusal_rate", "reasoning_accuracy")


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on one set."""

    rate: Estimate
    """Over what could be scored."""
    num_prompts: int
    """Prompts or problems asked."""
    coverage: Estimate
    """Scored / all answers."""
    num_unscored: int
    """Answers without a score; they are in no rate."""
    num_truncated: int = 0
    """Reasoning only: answers that were cut or never left the think block; they are wrong, not unscored."""
    num_incomparable: int = 0
    """Reasoning only: answers that could not be compared in time or memory; they are wrong, not unscored."""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a scorecard: one metric on one set."""

    metric: Metric
    """What is measured; the first two are better when low, reasoning when high."""
    set_name: str
    """The prompt set, the problem set or the file."""
    new: Measured
    """The model that is evaluated."""
    base: Measured | None
    """The model that it is held against, on the same prompts; None if there is none."""
    change: Estimate | None
    """New minus base, paired over the prompts scored for both; None without a base."""


@dataclass(frozen=True, slots=True)
class Composite:
    """One figure over several sets, for both models."""

    new: Estimate
    """Of the model that is evaluated."""
    base: Estimate | None
    """Of the base; None if there is none."""
    change: Estimate | None
    """New minus base, paired prompt by prompt; None without a base."""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """A model held against the one it was made from; whoever reports it reads nothing else."""

    model: str
    """The model that is evaluated, as the user named it."""
    model_id: str
    """Its identity: weights, tokenizer, chat template, precision and thinking switch."""
    revision: str | None
    """Its commit on the hub; None for any other."""
    against: str | None
    """The base, as named by the user or by the checkpoint; None if there is none."""
    against_id: str | None
    """Identity of the base."""
    against_revision: str | None
    """Its commit on the hub."""
    scores: tuple[Score, ...]
    """Safety, over-refusal, reasoning; one row a set."""
    composite: Composite | None
    """S of OPSA Eq. 6 over the sets; None unless both harmful and benign prompts could be scored."""
    reasoning: Composite | None
    """Accuracy over all problems of all sets, one that stands in two sets counting in both; None if not measured."""
    tax: Estimate | None
    """Base reasoning minus new reasoning over all problems, paired: above 0, ability was lost."""
    judge: str
    """Name of the judge."""
    judge_id: str
    """Its identity."""
    sampling: Sampling
    """How answers were drawn."""
    num_samples: int
    """Answers a reasoning problem; prompts get one."""
    split: Scope
    """Which prompts were asked."""
    settings: Mapping[str, Any]
    """The resolved configuration."""
    prompts_id: str
    """Content hash of the prompts asked."""
    problems_id: str | None
    """Content hash of the problems; None without any."""
    num_unscored: int
    """Answers of the evaluated model without a score."""
    notes: tuple[str, ...] = ()
    """What the reader must know."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    card_version: int = 1
    """Version of this record."""

    def of(self, metric: Metric) -> tuple[Score, ...]:
        """Return the rows of a metric."""
        return tuple(score for score in self.scores if score.metric == metric)
