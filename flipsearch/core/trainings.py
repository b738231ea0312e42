"""What a finished training is: the record that lies in the checkpoint as training.json, and the steps of log.jsonl.

This module knows nothing of models, files or statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flipsearch.core.records import Context, Kind

Method = Literal["opsa", "sft-self", "sft-teacher"]
METHODS: Mapping[Method, str] = {
    "opsa": "on-policy self-alignment: own rollouts, each token supervised by the frozen model under the context",
    "sft-self": "off-policy self-distillation: own answers under the context that the judge keeps, then SFT without it",
    "sft-teacher": "an external teacher's answers under the context that the judge keeps, then SFT without it",
}
Control = Literal["empty", "neutral", "shuffled"]
"""What may stand in the context's place, to see what the training does without its meaning."""
LogLine = Mapping[str, float]
"""One optimizer step: step, epoch, loss, grad_norm, learning_rate, and what `training/stats.py` says of its rows."""


@dataclass(frozen=True, slots=True)
class RoutedContext:
    """A context and the training prompts that were read under it."""

    kind: Kind
    """Of the prompts."""
    context: Context | None
    """None: the teacher reads these prompts as the student does."""
    num_prompts: int
    """How many."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One finished training."""

    model: str
    """What was trained, as the user named it; a local folder as an absolute path."""
    model_id: str
    """Its identity before training."""
    revision: str | None
    """Its commit on the hub."""
    method: Method
    """How."""
    control: Control | None
    """What stood in the context's place; None for the context itself."""
    teacher: str | None
    """The external teacher of "sft-teacher"."""
    routed: tuple[RoutedContext, ...]
    """Every training prompt, by kind and context."""
    num_left_out: Mapping[Kind, int]
    """Training prompts that no context flipped, or whose answers the judge did not keep."""
    num_steps: int
    """Optimizer steps."""
    num_rollouts: int
    """Completions that were learnt from, repeats counted."""
    num_tokens: int
    """Completion tokens in them."""
    wall_s: float
    """Seconds of training, of the last run where it was resumed."""
    settings: Mapping[str, Any]
    """The resolved configuration."""
    prompts_id: str
    """Content hash of the training prompts."""
    judge_id: str | None
    """Identity of the judge that routed or kept; None where none was asked."""
    notes: tuple[str, ...] = ()
    """What the reader must know."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
