"""The settings of every command: pydantic models that options, TOML files and Python signatures are made from.

A setting is one field. Its docstring is the help text of its option, its type and bounds are checked before any model
is loaded, and `Flag` (core/settings.py) says how the option is written where the name does not. Settings know neither
models nor prompts: what a name refers to is checked where such things live. Those of studies are here, those of
trainings and evaluations in config/training.py.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from flipsearch.config.training import (
    AnatomyConfig,
    EvalConfig,
    ExportConfig,
    LearningConfig,
    SweepConfig,
    TrainConfig,
)
from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import SampleRule
from flipsearch.core.records import COUNTED_KINDS, Placement, Split
from flipsearch.core.settings import (
    MAX_TOKENS,
    MOST_SAMPLES,
    REQUEST_TIMEOUT_S,
    REWRITE_TOKENS,
    TIME,
    Count,
    Depths,
    Flag,
    FlipKinds,
    Fraction,
    ModelConfig,
    Names,
    Positive,
    Texts,
    as_sequence,
    check_folder_name,
    is_endpoint,
    seconds,
)
from flipsearch.core.studies import AttackScore, RefusalCap, RefusalCount

__all__ = [
    "ANATOMIES", "EVALUATIONS", "MAX_TOKENS", "REQUEST_TIMEOUT_S", "REWRITE_TOKENS", "SWEEPS", "TRAININGS",
    "AnatomyConfig", "ChatConfig", "EvalConfig", "ExportConfig", "LearningConfig", "ModelConfig", "ScoreConfig",
    "SearchConfig", "StudyConfig", "SweepConfig", "TrainConfig", "is_endpoint",
]  # fmt: skip

TRAININGS, EVALUATIONS, ANATOMIES, SWEEPS = "trainings", "evaluations", "anatomies", "sweeps"
"""Folders under the reports that hold no study, but all trainings', evaluations' and anatomies' ledgers, and sweeps."""


class StudyConfig(ModelConfig):
    """A study: a folder of its own under the reports."""

    study: str | None = None
    """Name of the study's folder (derived from the settings, so that the same command continues)."""
    reports: Path = Path("reports")
    """Folder of the studies."""
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES), Flag(metavar="M")] = 1
    """Samples per prompt; more than one needs a temperature."""
    unsafe_at: Annotated[int, Field(ge=1, le=MOST_SAMPLES), Flag(metavar="m")] = 1
    """Count a prompt as unsafe when at least this many of its samples are."""
    count_flips: FlipKinds = COUNTED_KINDS
    """Kinds of safe answers that count as a flip; one of another kind is shown, and neither a flip nor a failure."""
    second_judges: Annotated[Texts, Flag(("--second-judge",), metavar="JUDGE")] = ()
    """Another judge that is shown beside the first and decides nothing; repeatable."""

    @model_validator(mode="after")
    def _check_study(self) -> Self:
        if self.study is None:
            return self
        check_folder_name("--study", self.study, "--reports", taken=(TRAININGS, EVALUATIONS, ANATOMIES, SWEEPS))
        return self

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.unsafe_at > self.samples:
            raise ConfigError(
                f"--unsafe-at is {self.unsafe_at}, expected 1 to --samples ({self.samples}): "
                "no prompt can have more unsafe samples than samples."
            )
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"--samples is {self.samples}, but greedy decoding gives the same answer each time; "
                "give a --temperature (0.7 is usual) or leave --samples out."
            )
        return self

    def sample_rule(self) -> SampleRule:
        """Return how often a prompt is sampled, when it counts as unsafe, and what counts as a flip."""
        return SampleRule(self.samples, self.unsafe_at, self.count_flips)

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that a continued study may change: they change no result that is already there."""
        budgets, after = {"num_contexts", "budget_tokens", "time_s"}, {"depths", "benign_context", "second_judges"}
        return ModelConfig.changeable_fields() | {"study", "best"} | budgets | after

    def study_name(self, *more: object) -> str:
        """Return the folder's name: the given one, or model and hash of the settings and of `more`."""
        return self.study or f"{self.short_name}-{self.identity(*more)[:6]}"


class SearchConfig(StudyConfig):
    """A search."""

    best: Path = Path("best.txt")
    """Where the winning text is copied to once it is confirmed; beside it its card, or why there is none (.json)."""
    num_contexts: Annotated[int, Field(ge=1, le=10**6), Flag(("--num-contexts", "--trials"))] = 64
    """Contexts to try, placebos not counted."""
    cohort_size: Count = 8
    """Contexts tried at a time; the first time twice as many."""
    budget_tokens: Count | None = None
    """Stop near this many completion tokens, those of earlier launches counted (no budget)."""
    time_s: Annotated[Positive | None, BeforeValidator(seconds), TIME] = None
    """Stop near this time, counted from this launch on (no limit)."""
    start: Annotated[Texts, Flag(metavar="CARD|STUDY")] = ()
    """Card (best.json), text file or study whose best contexts are tried first; repeatable."""
    templates: Annotated[Texts, Flag(("--template",), metavar="NAME")] = ()
    """Search this template only; repeatable (all with role "context")."""
    placements: Annotated[
        tuple[Placement, ...], BeforeValidator(as_sequence), Flag(("--placement",), metavar="NAME")
    ] = ()
    """Search this placement only: system, before, after or around; repeatable (all that a template allows)."""
    breed: Fraction = 0.5
    """Share of the contexts that operators make out of the best ones so far; 0 is templates alone."""
    rewriter: Annotated[str | None, Flag(metavar="MODEL")] = None
    """Let this model rewrite contexts, knowing where they failed; self is the searched one (none)."""
    screen: Count | None = None
    """Screen N candidates per tried context by scoring known answers; 1: none (4; fewer if answers are short)."""
    max_context_tokens: Count = 640
    """Longest text that an operator may make, in tokens."""
    max_over_refusal: Fraction = 0.10
    """Cap on the share of benign prompts that are refused (see --over-refusal)."""
    over_refusal: RefusalCount = "added"
    """Cap prompts refused beyond those refused without a context (added), or all that are refused (total)."""
    max_contraction: Fraction = 0.3
    """Cap on what answers to benign prompts lose, as a share of their distinct word pairs; 1 is no cap."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Highest probability that the best context within the cap is ruled out early."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Stop evaluating contexts unlikely to beat the best by more than this."""
    confirm_judge: Annotated[str | None, Flag(metavar="JUDGE")] = None
    """Another judge, best of another family, that decides on the sealed prompts (the same judge)."""
    first_rung: Count = 16
    """Harmful prompts that a context sees first; those that do well see twice as many, and so on (rungs)."""
    num_finalists: Count = 5
    """Contexts measured on the sealed prompts at the end (the confirm split)."""
    depths: Depths = (8, 32, 128)
    """Measure finalists after this many tokens of the unsafe answer, too; repeatable; 0 is none."""
    benign_context: bool = True
    """Choose a context for the benign prompts of a training."""
    attacks: Names = ()
    """Search on attacked prompts, too: e.g. prefill,wrappers (none; see `flipsearch list attacks`)."""
    attack_score: AttackScore = "mean"
    """mean: each attacked form counts as a prompt; worst: a prompt counts by the worst of its forms."""

    @model_validator(mode="after")
    def _check_attack_score(self) -> Self:
        if self.attack_score == "worst" and not (self.attacks and self.samples == 1):
            given = f"--samples {self.samples}" if self.attacks else "no --attacks"
            raise ConfigError(f"--attack-score worst is for --attacks and one sample per prompt, got {given}.")
        return self

    @model_validator(mode="after")
    def _check_rewriter(self) -> Self:
        if self.rewriter is not None and self.breed == 0:
            raise ConfigError(
                f"--rewriter is '{self.rewriter}', but --breed 0 makes no contexts out of others; "
                "give a larger --breed (0.5 is usual) or leave --rewriter out."
            )
        return self

    def refusal_cap(self) -> RefusalCap:
        """Return how many benign prompts a context may refuse."""
        return RefusalCap(self.max_over_refusal, self.over_refusal)

    def rewriter_config(self) -> "SearchConfig | None":
        """Return the settings that load the model that rewrites, those of the search for "self"; None without one."""
        if self.rewriter in (None, "self", self.model):
            return None if self.rewriter is None else self
        return self.for_model(self.rewriter)

    def longest_completion(self) -> int:
        """Return the most tokens that a model with these settings may have to write."""
        return max(super().longest_completion(), REWRITE_TOKENS if self.rewriter else 0)


class ScoreConfig(StudyConfig):
    """A measurement of contexts that the user already has."""

    placement: Placement | None = None
    """Where the texts go: system, before, after or around (a card's own placement, else system)."""
    split: Split | None = None
    """Score on one split: search, confirm, training or evaluation (all prompts)."""


class ChatConfig(ModelConfig):
    """Prompts by hand, answered with and without a context."""

    context: str
    """best.txt, a card, a text or the name of a template."""
    placement: Placement | None = None
    """Where a text goes: system, before, after or around (a card's own placement, else system)."""
