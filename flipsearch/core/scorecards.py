"""The records of an evaluation: what a scorecard holds.

    answers of two models --scored--> Measured --paired--> Score --pooled--> Composite --> Scorecard

All are frozen, like those in records.py. This module knows nothing of models, files or statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flipsearch.core.records import AnswerKind, Estimate, Sampling, Scope

Metric = Literal["harmful_rate", "over_refusal_rate", "reasoning_accuracy"]
METRICS: tuple[Metric, ...] = ("harmful_rate", "over_refusal_rate", "reasoning_accuracy")


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one model on one set."""

    rate: Estimate
    """Over the scored answers."""
    num_prompts: int
    coverage: Estimate
    """Scored / all answers."""
    num_unscored: int
    """Answers without a score; they are in no rate."""
    num_truncated: int = 0
    """Reasoning only: answers that ended at the token limit or inside the think block; wrong, not unscored."""
    num_incomparable: int = 0
    """Reasoning only: answers whose comparison ran out of time or memory; wrong, not unscored."""
    kinds: Mapping[AnswerKind, int] = field(default_factory=dict)
    """Harm only: kind -> answers, scored or not; those that nobody gave a kind are left out."""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a scorecard: one metric on one set, for the new model and its base."""

    metric: Metric
    """The first two are better when low, reasoning accuracy when high."""
    set_name: str
    new: Measured
    base: Measured | None
    change: Estimate | None
    """New minus base, paired over the prompts scored for both; None without a base."""


@dataclass(frozen=True, slots=True)
class Composite:
    """One figure over several sets, for both models."""

    new: Estimate
    base: Estimate | None
    change: Estimate | None
    """New minus base, paired by prompt; None without a base."""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """An evaluation of a model, compared with its base; reports read nothing else."""

    model: str
    model_id: str
    """Identity: weights, tokenizer, chat template, precision and thinking switch."""
    revision: str | None
    """Commit on the hub; None for a model from elsewhere."""
    against: str | None
    """The base, as named by the user or by the checkpoint; None if there is none."""
    against_id: str | None
    against_revision: str | None
    scores: tuple[Score, ...]
    """Harm, over-refusal, reasoning; one row per set."""
    composite: Composite | None
    """S of OPSA Eq. 6 over the sets; None unless both harmful and benign prompts could be scored."""
    reasoning: Composite | None
    """Accuracy over all problems; a problem of two sets counts in both. None if not measured."""
    tax: Estimate | None
    """Base minus new reasoning accuracy over all problems, paired: above 0, ability was lost."""
    judge: str
    judge_id: str
    sampling: Sampling
    num_samples: int
    """Answers per reasoning problem; prompts get one."""
    split: Scope
    settings: Mapping[str, Any]
    prompts_id: str
    """Content hash."""
    problems_id: str | None
    """Content hash; None without problems."""
    num_unscored: int
    """Answers of the new model without a score."""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    card_version: int = 1
    """Format version of this record."""
