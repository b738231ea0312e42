"""The training methods, and the record of a finished training: training.json and the steps of log.jsonl.

Knows neither models nor files. To add a method, write one file with a `make_trainer` and add its row to METHODS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flipsearch.core.errors import ConfigError, TrainingError, unknown_name
from flipsearch.core.records import Context, Kind

TRAINING_FORMAT = 1
"""Version of training.json and of a checkpoint in progress."""
_PAPER = "[arXiv 2605.15239](https://arxiv.org/abs/2605.15239)"
Control = Literal["empty", "neutral", "shuffled"]
"""What replaces the context, to measure what a training does without the context's meaning."""
LogLine = Mapping[str, float]
"""One optimizer step: step, epoch, loss, grad_norm, learning_rate, and the statistics of its rows."""


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """How a model is trained, as far as settings, plan and reports have to know."""

    summary: str
    card: str
    """A paragraph of Markdown for the model card."""
    trainer: str
    """Import path "module:function" of what makes a trainer from a TrainingJob and a TrainConfig."""
    loss: str
    """What reports call the loss of a token."""
    is_supervised: bool
    """Whether it learns from answers that are written before training and kept by the judge."""
    needs_teacher: bool = False
    """Whether these answers are written by another model, --teacher."""
    settings: frozenset[str] = frozenset()
    """Fields of TrainConfig that mean something only to methods that list them."""


METHODS: dict[str, TrainingMethod] = {
    "opsa": TrainingMethod(
        summary="on-policy self-alignment: own rollouts, each token supervised by the frozen model under the context",
        card=f"On-policy self-alignment (OPSA, {_PAPER}, Eq. 2). In every step the model completes prompts without any "
        "context, as it will be used. A frozen copy of it, the teacher, reads the same completions under the context "
        "that goes with the prompt. The divergence between the two next-token distributions, mean over the completion "
        "tokens up to the horizon, is minimised through the model: it learns from its own texts to answer as it would "
        "under the context.",
        trainer="flipsearch.training.opsa:make_trainer",
        loss="divergence",
        is_supervised=False,
        settings=frozenset(
            {"forward_weight", "reverse_weight", "jensen_shannon_weight", "loss_mixture", "loss_temperature"}
            | {"support", "tail", "clip", "horizon"}
        ),
    ),
    "sft-self": TrainingMethod(
        summary="off-policy self-distillation: own answers under the context that the judge keeps, then SFT without it",
        card=f"Off-policy self-distillation, a baseline method of OPSA's paper ({_PAPER}). The model answered the "
        "prompts under the context, a judge kept the good answers, and the model was fine-tuned on them with the "
        "context left out.",
        trainer="flipsearch.training.sft:make_trainer",
        loss="negative log-likelihood",
        is_supervised=True,
    ),
    "sft-teacher": TrainingMethod(
        summary="an external teacher's answers under the context that the judge keeps, then SFT without it",
        card=f"Supervised fine-tuning on the answers of another model, a baseline method of OPSA's paper ({_PAPER}). "
        "The teacher answered the prompts under the context, a judge kept the good answers, and the model was "
        "fine-tuned on them with the context left out.",
        trainer="flipsearch.training.sft:make_trainer",
        loss="negative log-likelihood",
        is_supervised=True,
        needs_teacher=True,
    ),
}


@dataclass(frozen=True, slots=True)
class RoutedContext:
    """A context and how many training prompts the teacher answered or scored under it."""

    kind: Kind
    context: Context | None
    """None: the teacher reads these prompts as the student does."""
    num_prompts: int


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One finished training."""

    format: int
    """TRAINING_FORMAT of the flipsearch that wrote it."""
    model: str
    """The base as the user named it; a local folder as an absolute path."""
    model_id: str
    revision: str | None
    method: str
    control: Control | None
    teacher: str | None
    """The model whose answers were learnt; None for methods without one."""
    routed: tuple[RoutedContext, ...]
    """Every training prompt, by kind and context."""
    num_left_out: Mapping[Kind, int]
    """Training prompts that no context flipped, or whose answers the judge did not keep."""
    num_steps: int
    num_rollouts: int
    """Completions that were learnt from, repeats counted."""
    num_tokens: int
    """Completion tokens in them."""
    wall_s: float
    """Seconds of all steps, those before a resume included."""
    settings: Mapping[str, Any]
    prompts_id: str
    """Content hash of the training prompts."""
    judge_id: str | None
    """Identity of the judge that routed prompts or kept answers; None where there was nothing to judge."""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    template_options: Mapping[str, bool | str] = field(default_factory=dict)
    """What the chat template was given beside the messages: its thinking switch."""
    inputs_id: str = ""
    """Content hash of all that the training follows from: settings, contexts, prompts and base."""


def check_method(name: str) -> str:
    """Return `name`; raises ConfigError with near names if METHODS does not have it."""
    if name not in METHODS:
        raise ConfigError(unknown_name("training method", name, METHODS))
    return name


def check_format(content: object, path: object) -> None:
    """Raise TrainingError unless `content`, the parsed JSON of `path`, says that it is of TRAINING_FORMAT."""
    version = content.get("format") if isinstance(content, Mapping) else None
    if version != TRAINING_FORMAT:
        raise TrainingError(
            f"'{path}' is of training format {version!r}, expected {TRAINING_FORMAT}; train again, or use the version "
            "of flipsearch that wrote it."
        )
