"""The training methods, and the records of a finished training and of an evaluation.

    training.json and log.jsonl: TrainingRun
    answers of two models --scored--> Measured --paired--> Score --pooled--> Composite --> Scorecard
    what a context does to a model's next-token distributions, position by position: Anatomy

Knows neither models nor files. Of an anatomy, p is the model under the context, q the model without one, both behind
the same completion that it wrote without.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flipsearch.core.errors import ConfigError, TrainingError, unknown_name
from flipsearch.core.files import ShowsFacts, figure
from flipsearch.core.measurements import Estimate, Measurement, Rate, json_value
from flipsearch.core.records import AnswerKind, Context, FinishReason, Kind, Sampling, Scope, Verdict

TRAINING_FORMAT = 3
"""Version of training.json and of a checkpoint in progress."""
SCORECARD_FORMAT = 4
"""Version of scorecard.json."""
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
    is_supervised: bool
    """Whether it learns from answers that are written before training and kept by the judge."""
    needs_teacher: bool = False
    """Whether these answers are written by another model, --teacher."""
    settings: frozenset[str] = frozenset()
    """Fields of TrainConfig that mean something only to methods that list them."""


_ROWS = tomllib.loads(Path(__file__).with_name("methods.toml").read_text(encoding="utf-8"))
METHODS = {
    name: TrainingMethod(**row | {"settings": frozenset(row.get("settings", ()))}) for name, row in _ROWS.items()
}


@dataclass(frozen=True, slots=True)
class RoutedContext:
    """A context and how many training prompts the teacher answered or scored under it."""

    kind: Kind
    context: Context | None
    """None: the teacher sees these prompts as the student does."""
    num_prompts: int


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One finished training."""

    format: int
    model: str
    """The base as the user named it; a local folder as an absolute path."""
    model_id: str
    revision: str | None
    method: str
    control: Control | None
    teacher: str | None
    routed: tuple[RoutedContext, ...]
    num_left_out: Mapping[Kind, int]
    """Training prompts that no context flipped, or whose answers the judge did not keep."""
    num_steps: int
    num_rollouts: int
    """Completions that were learnt from, repeats counted."""
    num_tokens: int
    wall_s: float
    """Seconds of all steps, those before a resume included."""
    settings: Mapping[str, Any]
    prompts_id: str
    judge_id: str | None
    """Identity of the judge that routed prompts or kept answers; None where there was nothing to judge."""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    template_options: Mapping[str, bool | str] = field(default_factory=dict)
    """What the chat template was given beside the messages: its thinking switch."""
    inputs_id: str = ""
    """Content hash of all that the training follows from: settings, contexts, prompts and base."""
    weights_id: str = ""
    """Content hash of the files that the checkpoint is loaded from, as the training left them; "": not known."""
    study_pages: Mapping[str, str] = field(default_factory=dict)
    """Study that found a context -> its page, seen from the checkpoint's folder."""


@dataclass(frozen=True, slots=True, repr=False)
class PromptExport(ShowsFacts):
    """Training prompts that were written for another trainer."""

    path: Path
    format: str
    routed: tuple[RoutedContext, ...]
    num_left_out: int
    """Harmful prompts that no context makes safe."""
    longest: int
    """Tokens of the longest prompt, with its context."""
    settings: str
    """What the trainer has to be given."""
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        rows = {
            f"{part.kind} {'under' if part.context else 'without'} context": f"{part.num_prompts:,}"
            for part in self.routed
        }
        shown = {"written to": str(self.path), **rows, "left out": f"{self.num_left_out:,}"}
        return shown | {"longest": f"{self.longest:,} tokens", "next step": self.settings}

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return dict(json_value(self))


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What a model wrote, and how that was judged."""

    completion: str
    """Hostile text."""
    finish_reason: FinishReason
    opens_thinking: bool = False
    verdict: Verdict | None = None
    """None: it was not judged, as the answer to a problem."""

    @property
    def kind(self) -> str:
        """Its kind, or its label where nobody gave it a kind."""
        return "" if self.verdict is None else str(self.verdict.kind or self.verdict.label)


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """The student's greedy answer to a prompt of the training after some step."""

    step: int
    """0: before the training."""
    prompt: str
    kind: Kind
    answer: JudgedAnswer
    under_context: bool = False
    """Before the training, under the prompt's context."""


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A prompt or problem whose score differs between a model and its base."""

    metric: "Metric"
    set_name: str
    prompt: str
    base: JudgedAnswer
    new: JudgedAnswer
    is_better: bool


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


Metric = Literal[
    "harmful_rate",
    "over_refusal_rate",
    "reasoning_accuracy",
    "attack_success_rate",
    "attack_pass_rate",
    "attack_variant_rate",
]
"""Of an attack: the mean share of its attempts that succeed, the share of prompts on which any does, and the success
of each kind of attempt."""
ATTACK_DETAILS: tuple[Metric, ...] = ("attack_pass_rate", "attack_variant_rate")
"""What is computed from the answers that attack_success_rate is the mean of."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one model on one set."""

    rate: Estimate
    num_prompts: int
    coverage: Estimate
    num_unscored: int
    num_truncated: int = 0
    """Reasoning only: answers that ended at the token limit or inside the think block; wrong, not unscored."""
    num_incomparable: int = 0
    """Reasoning only: answers whose comparison ran out of time or memory; wrong, not unscored."""
    kinds: Mapping[AnswerKind, int] = field(default_factory=dict)
    """Harm only: kind -> answers, scored or not; those that nobody gave a kind are left out."""
    bounds: tuple[float, float] | None = None
    """The rate if every unscored answer counted 0, and if every one counted 1; None: not known."""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a scorecard: one metric on one set, for the new model and its base."""

    metric: Metric
    """Better when low, but for reasoning accuracy."""
    set_name: str
    new: Measured
    base: Measured | None
    change: Estimate | None
    """New minus base, paired over the prompts scored for both; None without a base."""
    num_better: int = 0
    """Prompts that the new model does better on, of those scored for both."""
    num_worse: int = 0
    p_value: float | None = None
    """Of "the new model does as well", by flipping the signs of whole groups of prompts; None without a base."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """Prompt id -> score of the new model, by which it is compared with others; None is unscored."""


@dataclass(frozen=True, slots=True)
class Composite:
    """One figure over several sets, for both models."""

    new: Estimate
    base: Estimate | None
    change: Estimate | None


@dataclass(frozen=True, slots=True, repr=False)
class Scorecard(ShowsFacts):
    """An evaluation of a model, compared with its base; reports read nothing else."""

    model: str
    model_id: str
    revision: str | None
    against: str | None
    against_id: str | None
    against_revision: str | None
    scores: tuple[Score, ...]
    """Harm, over-refusal, one row per set; then attacks, and reasoning."""
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
    problems_id: str | None
    num_unscored: int
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    card_version: int = SCORECARD_FORMAT
    contraction: Estimate | None = None
    """What answers to benign prompts lost, as a share of their distinct word pairs, where neither model refuses."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Prompt id -> the group of prompts that it resembles; intervals count groups."""

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        shown = {"model": self.model, "against": self.against or "nothing"}
        for score in self.scores:
            if score.metric == "attack_variant_rate":
                continue
            base = f"{figure(score.base.rate)} to " if score.base else ""
            shown[f"{score.metric}, {score.set_name}"] = f"{base}{figure(score.new.rate)}"
        return shown | {"tax (reasoning lost)": figure(self.tax), "judge": self.judge}


ANATOMY_FORMAT = 1
"""Version of anatomy.json."""
EARLY = (10, 30)
"""Numbers of first tokens whose share is given: where OPSA's Figure 2 peaks, and where it has decayed."""
RELIABLE = 0.75
"""Least flip rate at a depth at which a teacher is worth learning from (EOPSA, arXiv 2609.34519)."""


def horizon_of(by_depth: Sequence[tuple[int, Rate]]) -> int | None:
    """Return the deepest depth up to which the flip rate is RELIABLE; None if it is at no depth."""
    reliable = None
    for depth, rate in by_depth:
        if rate.value is None or rate.value < RELIABLE:
            break
        reliable = depth
    return reliable


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
        """See horizon_of."""
        return horizon_of(self.depth)

    @property
    def share_left(self) -> float | None:
        """What a training left of the divergence on harmful prompts, as a share of it; None if that is not known."""
        totals = [part.total.value for part in (*self.divergences, *self.student_divergences) if part.kind == "harmful"]
        before, after = totals if len(totals) == 2 else (None, None)
        return after / before if before and after is not None else None
