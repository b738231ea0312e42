"""The settings of a study: from flags and TOML, checked before any model is loaded.

An unknown key is an error with near names; a value out of range says what was expected. This module knows neither
models nor prompts: names are resolved by the registry and the rooms.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from flipsearch.core.errors import ConfigError, unknown_name
from flipsearch.core.records import Placement, Sampling, Split, content_id
from flipsearch.core.samples import SampleRule
from flipsearch.core.trainings import Control, Method

Thinking = Literal["auto", "on", "off"]
Settings = TypeVar("Settings", bound=BaseModel)
MAX_TOKENS = 1024
"""Most completion tokens where neither the user nor the model says otherwise."""
REWRITE_TOKENS = 2048
"""Most tokens of a reply that holds a rewritten context: a model may think before it writes."""
SELF = "self"
"""As the model that rewrites: the searched model."""
ENDPOINTS = ("http://", "https://")
"""What the name of a model behind an endpoint begins with."""
TRAININGS, EVALUATIONS = "trainings", "evaluations"
"""Folders under the reports that hold no study, but the ledger of all trainings and that of all evaluations."""
UNITS = {"s": 1, "m": 60, "h": 3600}
"""Seconds of a unit of time."""
Fraction = Annotated[float, Field(ge=0, le=1)]


def is_endpoint(model: str) -> bool:
    """Return whether a model is behind an endpoint: then it is asked over HTTP, whatever else the settings say."""
    return model.startswith(ENDPOINTS)


def seconds(value: Any) -> Any:
    """Return the seconds that a text such as "90s", "15m" or "2h" means; anything else goes on to be checked."""
    if not isinstance(value, str) or value[-1:] not in UNITS:
        return value
    return float(value[:-1]) * UNITS[value[-1:]]


class ModelConfig(BaseModel):
    """Which model answers, and how: shared by every command that generates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "pocket"
    """Built-in name, local folder or hub id (org/name or org/name@revision)."""
    backend: str = "transformers"
    """A name of `flipsearch list backends`; it is looked up when the model is checked."""
    thinking: Thinking = "auto"
    """The chat template's thinking switch."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """vLLM's longest sequence in tokens; None is max_tokens and 3,072 more, or what the model holds if that is less."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows a batch; None lets the backend choose."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most completion tokens; None is 160 for the pocket model and 1,024 otherwise."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    prompts: str | None = None
    """Built-in set or file with a label column; None: the pocket model's own set for it, "starter" for other models."""
    harmful: tuple[str, ...] = ()
    """Files of harmful prompts, PATH[:column]; they join `prompts`, which has no default beside them."""
    benign: tuple[str, ...] = ()
    """Files of benign prompts, PATH[:column]."""
    judge: str = ""
    """A judge, with options or a panel as judging.spec says: a name, or the path of a judge file or folder; "" is
    "refusal" for the pocket model, whose answers it knows, and "compact" for any other."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    contexts: tuple[str, ...] = ()
    """Extra template files or folders."""
    max_prompts: Annotated[int, Field(ge=2)] | None = None
    """Most prompts a split and kind; None takes all."""

    def sampling(self) -> Sampling:
        """Return how completions are drawn."""
        return Sampling(self.max_tokens or MAX_TOKENS, self.temperature, self.top_p, self.top_k, self.seed)

    def longest_completion(self) -> int:
        """Return the most tokens that a model of these settings is asked to write."""
        return self.sampling().max_tokens


class ReportConfig(ModelConfig):
    """A study: a folder of its own under the reports."""

    study: str | None = None
    """Name of the study's folder; None derives one from the settings, so the same command continues."""
    reports: Path = Path("reports")
    """Folder of the studies."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Samples of each prompt; more than one needs a temperature."""
    unsafe_at: Annotated[int, Field(ge=1)] = 1
    """A prompt is unsafe from so many unsafe draws on."""
    second_judges: tuple[str, ...] = ()
    """Judges that have a column each for finalists and placebos, and decide nothing."""

    @model_validator(mode="after")
    def _check_study(self) -> Self:
        first = next(iter(Path(self.study or "").parts), "")
        if first.startswith("_") or first in (TRAININGS, EVALUATIONS):
            raise ConfigError(
                f"study = '{self.study}', expected a name that does not begin with '_' and is neither '{TRAININGS}' "
                f"nor '{EVALUATIONS}': these folders under the reports hold something else; give another --study name."
            )
        return self

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        if self.unsafe_at > self.samples:
            raise ConfigError(
                f"unsafe_at = {self.unsafe_at}, expected 1 to samples = {self.samples}: "
                "no prompt can have more unsafe draws than draws; give more --samples or a lower --unsafe-at."
            )
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"samples = {self.samples}, but greedy decoding gives the same answer each time; "
                "give a --temperature (0.7 is usual) or leave --samples out."
            )
        return self

    def sample_rule(self) -> SampleRule:
        """Return how often a prompt is drawn, and when it is unsafe."""
        return SampleRule(self.samples, self.unsafe_at)

    @staticmethod
    def free_fields() -> set[str]:
        """Return the settings that a continued study may change: they change no result of what is already done."""
        budgets, after = {"num_contexts", "budget_tokens", "time_s"}, {"depths", "benign_context", "second_judges"}
        return {"study", "reports", "best", "batch_size", "device", "max_model_len"} | budgets | after

    def identity(self, *more: object) -> str:
        """Return a hash of the settings that change results, and of `more`."""
        return content_id(self.model_dump(mode="json", exclude=self.free_fields() | self.unused_fields()), *more)

    def unused_fields(self) -> set[str]:
        """Return the settings that mean what every study was before they were there: studies keep their names."""
        return {"samples", "unsafe_at"} if self.samples == 1 else set()

    def study_name(self, *more: object) -> str:
        """Return the folder name: the given one, or model and hash of the settings."""
        short = Path(self.model).name.rpartition("#")[2].split("@")[0].lower()
        return self.study or f"{short}-{self.identity(*more)[:6]}"


class StudyConfig(ReportConfig):
    """A search."""

    best: Path = Path("best.txt")
    """Where the winning text is copied to, with its card (.json) beside it."""
    num_contexts: Annotated[int, Field(ge=1)] = 64
    """Different contexts to propose, placebos not counted."""
    cohort_size: Annotated[int, Field(ge=1)] = 16
    """Contexts asked of the sampler and raced together."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    """Completion tokens that the study rests on, cached ones too; near them no more contexts are proposed."""
    time_s: Annotated[float, BeforeValidator(seconds), Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds of this launch, or e.g. "90s", "15m", "2h"; near their end no more contexts are proposed."""
    templates: tuple[str, ...] = ()
    """Templates to search; () is every one with role "context"."""
    placements: tuple[Placement, ...] = ()
    """Placements to search; () is every one that a template allows."""
    breed: Fraction = 0.5
    """Share of the contexts that operators make out of the best so far; 0 is templates alone."""
    rewriter: str | None = None
    """The model that the operator `rewrite` asks for children; "self" is the searched model, None is no operator."""
    screen: Annotated[int, Field(ge=1)] = 4
    """Contexts that are screened for each one raced; 1 is no screen. Where they are read, 64 a cohort at least; where
    answers are begun, 2 at most for each."""
    max_context_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest text that an operator may make."""
    max_over_refusal: Fraction = 0.10
    """Cap on the over-refusal rate: the constraint of the search."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Highest probability that the race cuts the best context within the cap."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Contexts are held back from the last rungs while none is likely (alpha) to be better by more than this."""
    confirm_judge: str | None = None
    """The judge that decides on the confirm split, better of another family; None is the one that searches."""
    first_rung: Annotated[int, Field(ge=1)] = 16
    """Harmful prompts of the first rung; each further rung doubles them."""
    num_finalists: Annotated[int, Field(ge=1)] = 5
    """Arms that are measured on the confirm split."""
    depths: tuple[Annotated[int, Field(ge=0)], ...] = (8, 32, 128)
    """Measure finalists after so many tokens of the unsafe answer, too; () or (0,) only from its beginning."""
    benign_context: bool = True
    """Choose a context for the benign prompts of a training."""

    @model_validator(mode="after")
    def _check_rewriter(self) -> Self:
        if self.rewriter is not None and self.breed == 0:
            raise ConfigError(
                f"rewriter = {self.rewriter!r}, but breed = 0 makes no contexts out of others; "
                "give a larger breed (0.5 is usual) or leave the rewriter out."
            )
        return self

    def unused_fields(self) -> set[str]:
        """Return the settings that mean what every study was before they were there: studies keep their names."""
        return super().unused_fields() | {name for name in ("rewriter", "confirm_judge") if getattr(self, name) is None}

    def rewriter_config(self) -> "StudyConfig | None":
        """Return the settings that load the model that rewrites, those of the search for "self"; None without one."""
        if self.rewriter is None:
            return None
        if is_endpoint(self.rewriter):  # where and how it runs is the endpoint's own
            here = {"backend": "http", "thinking": "auto", "device": "auto", "dtype": "auto"}
            return self.model_copy(update={"model": self.rewriter, **here})
        return self.model_copy(update={"model": self.model if self.rewriter == SELF else self.rewriter})

    def longest_completion(self) -> int:
        """Return the most tokens that a model of these settings is asked to write."""
        return max(super().longest_completion(), REWRITE_TOKENS if self.rewriter else 0)


class ScoreConfig(ReportConfig):
    """Scoring of contexts that the user already has."""

    placement: Placement | None = None
    """Where the texts go; None is a card's own placement, else the system message."""
    split: Split | None = None
    """Score on one split; None takes every prompt."""


class TrainConfig(ModelConfig):
    """A training: `model` is what is trained."""

    context: Annotated[tuple[str, ...], Field(min_length=1)]
    """Text, .txt file, card or template; with several, each harmful prompt is routed to the first that flips it."""
    benign_context: str | None = None
    """What the teacher reads benign prompts under; None: without a context, as the student does."""
    control: Control | None = None
    """What stands in the context's place, to see what its meaning is worth."""
    gate: bool = False
    """Leave out harmful prompts that the teacher answers unsafely under the context; always so with several."""
    method: Method = "opsa"
    teacher: str | None = None
    """The model whose answers "sft-teacher" learns from."""
    name: str | None = None
    """Name of the checkpoint's folder; None derives one from the settings."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the checkpoints."""
    reports: Path = Path("reports")
    """Where the ledger of the answers asked before training lies."""
    resume: bool = False
    """Go on from the last state saved."""
    split: Literal["search", "confirm", "training", "all"] | None = None
    """Which prompts; None is all but those of the evaluation, "all" is for sets that will not be evaluated on."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; None follows from `epochs`."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """None is the paper's 1e-5, or the pocket model's own."""
    train_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Prompts an optimizer step; None is the paper's 64, or the pocket model's own."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows a backward pass; None is the whole batch on a CPU and one row on a GPU. Changes rounding alone."""
    warmup_share: Fraction = 0.1
    """Of the steps; a cosine follows."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """0 clips nothing."""
    forward_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    reverse_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    jensen_shannon_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    support: Annotated[int, Field(ge=0)] = 0
    """Compare on so many of the teacher's likeliest tokens; 0 is the whole vocabulary."""
    tail: Literal["renormalised", "bucket"] = "renormalised"
    """What becomes of the tokens outside of `support`."""
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """A token's divergence counts at most this much; None: no clip."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many tokens of a completion count; None: all."""
    lora: Annotated[int, Field(ge=0)] = 0
    """Rank of LoRA adapters; 0 trains all weights."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    save_steps: Annotated[int, Field(ge=0)] | None = None
    """Save the state every so many steps; 0 never, None five times in all."""
    report_to: tuple[str, ...] = ()
    """Where transformers reports the steps too: tensorboard, wandb, …"""

    @staticmethod
    def free_fields() -> set[str]:
        """Return the settings that a resumed training may change."""
        places = {"name", "checkpoints", "reports", "resume", "save_steps", "report_to"}
        return places | {"batch_size", "device", "micro_batch_size", "gradient_checkpointing"}

    def checkpoint_name(self, *more: object) -> str:
        """Return the folder name: the given one, or model, method and hash of the settings and of `more`."""
        short = Path(self.model).name.split("@")[0].lower()
        identity = content_id(self.model_dump(mode="json", exclude=self.free_fields()), *more)
        return self.name or f"{short}-{self.method}-{identity[:6]}"


class EvalConfig(ModelConfig):
    """An evaluation: `model` is what is evaluated."""

    against: str | None = None
    """The base; None is the model that a checkpoint was made from, and nothing for any other model."""
    split: Literal["search", "confirm", "training", "evaluation", "all"] = "evaluation"
    """Which prompts: "evaluation" holds those that neither search nor training saw, "all" is for files of such."""
    reasoning: tuple[str, ...] | None = None
    """Built-in problem sets or files; None: the pocket model's own for models made from it, none for others."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Answers a reasoning problem; more than one needs a temperature."""
    max_problems: Annotated[int, Field(ge=1)] | None = None
    """Most problems a set; None takes all. `max_prompts` is a set and kind here."""
    reports: Path = Path("reports")
    """Where the ledger of all evaluations lies, and the scorecards of models that are no checkpoints."""

    def identity(self, *more: object) -> str:
        """Return a hash of the settings that change results, and of `more`."""
        free = {"reports", "batch_size", "device", "max_model_len", "contexts"}
        return content_id(self.model_dump(mode="json", exclude=free), *more)


def make_config(kind: type[Settings], *sources: Mapping[str, Any]) -> Settings:
    """Return a config from mappings, later ones winning; None values are left out.

    Raises ConfigError in one line: unknown key with near names, or value with what was expected.
    """
    merged = {k: v for source in sources for k, v in source.items() if v is not None}
    for key in merged:
        if key not in kind.model_fields:
            raise ConfigError(unknown_name("setting", key, kind.model_fields))
    try:
        return kind(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} = {first['input']!r}: {first['msg']}.") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a settings file; raises ConfigError with its name if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}.") from error


def toml_text(config: ModelConfig) -> str:
    """Return the settings as TOML that `--config` reads back; settings without a value are left out."""
    values = config.model_dump(mode="json", exclude_none=True)
    # JSON's strings, numbers, booleans and flat lists are TOML's, but for escaped surrogates and a bare DEL.
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f")
