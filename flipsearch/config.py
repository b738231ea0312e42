"""The settings of every command: pydantic models that options, TOML files and Python signatures are made from.

A setting is one field. Its docstring is the help text of its option, its type and bounds are checked before any model
is loaded, and `Flag` says how the option is written where the name does not. This module knows neither models nor
prompts: what a name refers to is checked where such things live.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import SampleRule
from flipsearch.core.records import COUNTED_KINDS, Placement, Sampling, Split, content_id
from flipsearch.core.settings import (
    PROMPT_FILES,
    TIME,
    Count,
    Depths,
    Flag,
    FlipKinds,
    Fraction,
    Names,
    NonNegative,
    Positive,
    Seconds,
    Shares,
    Texts,
    as_sequence,
    check_folder_name,
    seconds,
)
from flipsearch.core.studies import RefusalCap, RefusalCount
from flipsearch.core.trainings import METHODS, Control, check_method, check_methods

MAX_TOKENS = 1024
"""Completion tokens at most where neither the user nor the model says otherwise."""
THOUGHT_SHARE = 2
"""A model that thinks has this part of max_tokens for its thought where the user gives no budget: else hardly an answer
begins; a thought that is cut at less than a seventh of its natural length continues in the answer."""
REWRITE_TOKENS = 2048
"""Tokens at most of a reply that holds a rewritten context: a model may think before it writes."""
REQUEST_TIMEOUT_S = 900.0
"""Seconds of one request to an endpoint where the user does not say otherwise."""
MOST_SAMPLES = 1000
"""Samples per prompt at most."""
TRAININGS, EVALUATIONS, ANATOMIES, SWEEPS = "trainings", "evaluations", "anatomies", "sweeps"
"""Folders under the reports that hold no study, but all trainings', evaluations' and anatomies' ledgers, and sweeps."""


def is_endpoint(model: str) -> bool:
    """Return whether a model is behind an endpoint: it is then called over HTTP, whatever else the settings say."""
    return model.startswith(("http://", "https://"))


class ModelConfig(BaseModel):
    """Which model answers which prompts, how, and who judges: shared by every command that generates."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = "pocket"
    """Built-in name (pocket, smollm2), folder, FILE.gguf, hub id org/name[@revision] or http(s)://HOST/v1#NAME."""
    backend: str = "transformers"
    """transformers, vllm, http, scripted or one that is installed; see `flipsearch list backends`."""
    thinking: Literal["auto", "on", "off"] = "auto"
    """The chat template's thinking switch, by whichever name it has: auto, on or off."""
    think_tokens: Annotated[int, Field(ge=0)] | None = None
    """Close a thought after so many tokens; max_tokens is then the answer's own (half of it; 0: one limit for both)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights: auto, float32, bfloat16 or float16."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """vLLM's longest sequence in tokens (max_tokens and 3,072 more, or what the model holds if that is less)."""
    batch_size: Count | None = None
    """Rows per batch; halved automatically where memory is short (the backend chooses)."""
    max_tokens: Count | None = None
    """Completion tokens at most, without those of a thought that has a budget (pocket 160, others 1,024)."""
    temperature: NonNegative = 0.0
    """Randomness of the answers; 0 always takes the likeliest token (greedy)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a temperature: sample from the likeliest tokens that have this probability together."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """With a temperature: sample from so many of the likeliest tokens; 0 from all."""
    prompts: str | None = None
    """Built-in or public prompt set or file with labels (the model's own; see `flipsearch list prompts`)."""
    harmful: Annotated[Texts, PROMPT_FILES] = ()
    """File, https address, hub dataset ORG/NAME/CONFIG/SPLIT or public set of harmful prompts; repeatable."""
    benign: Annotated[Texts, PROMPT_FILES] = ()
    """The same of benign prompts; repeatable."""
    judge: str = ""
    """A judge J(option=value), or a panel J+J:any (:all, :majority, :mean) (compact; pocket: refusal)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of sampling, and of a search or a training."""
    contexts: Annotated[Texts, Flag(metavar="PATH")] = ()
    """More context templates: a .j2 file or a folder; repeatable."""
    max_prompts: Annotated[int, Field(ge=2)] | None = None
    """Prompts at most of each kind, per split in a search (all)."""
    omit: Annotated[Texts, Flag(metavar="PARAMETER")] = ()
    """Do not send this to the endpoint, e.g. temperature or max_tokens; repeatable (what it refuses when probed)."""
    request_timeout_s: Annotated[Seconds, Flag(("--request-timeout",), TIME.metavar, is_text=True)] = REQUEST_TIMEOUT_S
    """Time that a request to an endpoint may take, with all retries and pauses."""

    def sampling(self, thinks: bool = False) -> Sampling:
        """Return how completions are sampled; a model that `thinks` has a budget for it if none was given."""
        max_tokens = self.max_tokens or MAX_TOKENS
        usual = max_tokens // THOUGHT_SHARE if thinks else 0
        budget = usual if self.think_tokens is None else self.think_tokens
        return Sampling(max_tokens, self.temperature, self.top_p, self.top_k, self.seed, budget)

    def longest_completion(self) -> int:
        """Return the most tokens that a model with these settings may have to write."""
        return self.sampling().longest

    def for_model(self, model: str) -> Self:
        """Return the settings that load another model: behind an endpoint, that decides how."""
        other: dict[str, Any] = {"model": model, "omit": ()}
        if is_endpoint(model):
            other |= {"backend": "http", "thinking": "auto", "think_tokens": None, "device": "auto", "dtype": "auto"}
        elif model.endswith(".json") or self.backend in ("http", "scripted"):
            other |= {"backend": "scripted" if model.endswith(".json") else "transformers", "think_tokens": None}
        return self.model_copy(update=other)

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that change no result: they may differ when a command is continued."""
        return {"reports", "batch_size", "device", "max_model_len", "request_timeout_s"}

    def identity(self, *more: object) -> str:
        """Return a hash of the settings that change results, and of `more`."""
        return content_id(self.model_dump(mode="json", exclude=self.changeable_fields()), *more)


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
        short = Path(self.model).name.rpartition("#")[2].split("@")[0].lower()
        return self.study or f"{short}-{self.identity(*more)[:6]}"


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
    screen: Count = 4
    """Screen this many candidates per context that is tried, by scoring known answers; 1 turns screening off."""
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


class LearningConfig(ModelConfig):
    """What a model learns, and how: shared by a training and a sweep of trainings."""

    benign_context: str | None = None
    """Context that the teacher sees with benign prompts (none)."""
    count_flips: FlipKinds = COUNTED_KINDS
    """Kinds of safe answers that a context flips a prompt to, and that are learnt from where a judge keeps answers."""
    gate: bool = False
    """Leave out harmful prompts that the context does not make safe; always so with several contexts."""
    teacher: Annotated[str | None, Flag(metavar="MODEL")] = None
    """The model whose answers are learnt, for a method that needs one."""
    reports: Path = Path("reports")
    """Folder of the studies, with the ledger of the answers that are judged before a training, and all sweeps."""
    split: Literal["search", "confirm", "training", "all"] | None = None
    """Prompts: search, confirm, training, or all, for sets that are not evaluated on (all but evaluation)."""
    temperature: NonNegative = 0.6
    """Temperature of the rollouts; 0 is greedy decoding."""
    rollouts: str = "auto"
    """What writes opsa's rollouts: vllm, transformers or auto (vllm where it is installed and sees a GPU)."""
    epochs: Positive = 3.0
    """Passes over the prompts (pocket 6)."""
    max_steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    learning_rate: Positive | None = None
    """Learning rate of AdamW (1e-5; pocket 3e-4)."""
    train_batch_size: Count | None = None
    """Prompts per optimizer step (64; pocket 32)."""
    micro_batch_size: Count | None = None
    """Rows per backward pass; changes memory and rounding alone (the whole batch on a CPU, one row on a GPU)."""
    max_length: Annotated[int, Field(ge=16)] | None = None
    """Tokens of a prompt with its context and a completion, together; completions are shortened for it (no limit)."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw, or adamw-8bit, which keeps its moments in a byte each and needs bitsandbytes."""
    scheduler: Literal["cosine", "constant", "linear"] = "cosine"
    """What the learning rate does after the warm-up: cosine or linear (both to 0) or constant."""
    warmup_share: Fraction = 0.1
    """Share of the steps that warm up."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """Highest gradient norm; 0 clips nothing."""
    forward_weight: NonNegative = 0.5
    """Weight of KL(teacher || student)."""
    reverse_weight: NonNegative = 0.5
    """Weight of KL(student || teacher)."""
    jensen_shannon_weight: NonNegative = 0.0
    """Weight of the Jensen-Shannon divergence."""
    loss_mixture: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the teacher in the mixture of the Jensen-Shannon divergence: TRL's alpha, GKD's beta."""
    loss_temperature: Positive = 1.0
    """Both sides' logits are divided by it in the loss; TRL and NeMo-RL divide by --temperature."""
    support: Annotated[int, Field(ge=0)] = 0
    """Compare on this many of the teacher's likeliest tokens; 0 is the whole vocabulary."""
    tail: Literal["renormalised", "bucket"] = "renormalised"
    """What becomes of the tokens outside of `support`: renormalised or bucket."""
    clip: Positive | None = None
    """A token's divergence counts this much at most (no clip)."""
    horizon: Count | None = None
    """Only this many first tokens of a completion count (all; pocket 40)."""
    lora: Annotated[int, Field(ge=0), Flag(metavar="RANK")] = 0
    """Train LoRA adapters of this rank; 0 trains all weights."""
    lora_alpha: Positive | None = None
    """LoRA's scale: adapters count alpha / rank (twice the rank)."""
    lora_targets: Annotated[Texts, Flag(("--lora-target",), metavar="NAME")] = ()
    """Layers with adapters, by the end of their name, e.g. q_proj; repeatable (all linear layers but the head)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""


class TrainConfig(LearningConfig):
    """A training: `model` is what is trained."""

    context: Annotated[Texts, Field(min_length=1)]
    """best.txt, a card, a text or a template; with several, each harmful prompt goes to the first that flips it."""
    control: Annotated[Control | None, Flag(("--context-control",))] = None
    """Put this in the context's place, to see what its meaning is worth: empty, neutral or shuffled."""
    preset: Literal["paper", "quick", "eopsa-like"] | None = None
    """paper (OPSA's recipe), eopsa-like (on first tokens) or quick (minutes); options and files win over it."""
    method: Annotated[str, AfterValidator(check_method), Field(description=f"{', '.join(METHODS)}.")] = "opsa"
    name: str | None = None
    """Name of the checkpoint's folder (derived from the settings)."""
    checkpoints: Path = Path("checkpoints")
    """Folder that the checkpoints are written to."""
    resume: bool = False
    """Continue from the last state that was saved."""
    data_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learn from this share of the training prompts of each kind, the same ones for every method and seed."""
    save_steps: Annotated[int, Field(ge=0)] | None = None
    """Save the state every so many steps; 0 never (five times in all)."""
    report_to: Annotated[Texts, Flag(metavar="NAME")] = ()
    """Where transformers reports the steps too: tensorboard, wandb, …; repeatable."""
    eval_steps: Count | None = None
    """Judge the answers to prompts left out of the training every so many steps; keep the best state by S (never)."""
    eval_prompts: Count = 8
    """So many prompts of each kind for --eval-steps."""
    max_over_refusal: Fraction | None = None
    """With --eval-steps: stop where the share of refused benign prompts grew by more (no cap)."""
    max_contraction: Fraction | None = None
    """With --eval-steps: stop where answers to benign prompts lost more of their distinct word pairs (no cap)."""
    push_to_hub: Annotated[str | None, Flag(metavar="ORG/NAME")] = None
    """Upload the finished checkpoint to the Hugging Face hub, without its logs; private if it is new (nowhere)."""
    sample_prompts: Annotated[int, Field(ge=0)] = 4
    """Log what the student answers to so many prompts of each kind at five steps, for its page; 0 logs none."""

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that a resumed training may change."""
        places = {"name", "checkpoints", "reports", "resume", "save_steps", "report_to", "push_to_hub"}
        memory = {"batch_size", "device", "micro_batch_size", "gradient_checkpointing"}
        return places | memory | {"sample_prompts", "request_timeout_s"}

    def checkpoint_name(self, *more: object) -> str:
        """Return the folder's name: the given one, or model, method and hash of the settings and of `more`."""
        short = Path(self.model).name.split("@")[0].lower()
        return self.name or f"{short}-{self.method}-{self.identity(*more)[:6]}"


class SweepConfig(LearningConfig):
    """Trainings under several contexts: `model` is what is trained."""

    context: Texts = ()
    """best.txt, a card, a text or a template; repeatable: each is trained under."""
    study: str | None = None
    """Take the contexts of this finished study, spread over the range of its flip rates."""
    num_contexts: Annotated[int | None, Field(ge=2)] = None
    """Contexts that are taken of the study, the placebo among them (6)."""
    seeds: Count = 3
    """Trainings of each kind; their seeds count from --seed on."""
    methods: Annotated[Names, AfterValidator(check_methods), Flag(metavar="NAME,…")] = ("opsa",)
    """Training methods that are compared; the first is what the others are compared with."""
    data_sizes: Shares = (1.0,)
    """Shares of the training prompts that are learnt from, in as many steps."""
    predict_split: Literal["search", "confirm", "training", "evaluation", "all"] = "confirm"
    """Prompts that flip rates and divergences are measured on; harm after training is measured on evaluation."""
    critical_tokens: Count | None = None
    """First completion tokens that Delta_safety sums the divergence over (as many as the loss counts, else 10)."""
    reasoning: Annotated[Texts, Flag(metavar="NAME|PATH")] = ()
    """Problems for the tax of each training: arithmetic, or a file with question and answer; repeatable."""
    max_problems: Count | None = None
    """Problems at most per set (all)."""
    name: str | None = None
    """Name of the sweep's folder (derived from the settings, so that the same command continues)."""
    drop_weights: bool = False
    """Remove the weights of each checkpoint when it is evaluated: many large ones fill a disk."""

    @model_validator(mode="after")
    def _check_contexts(self) -> Self:
        if bool(self.context) == bool(self.study):
            got = "both" if self.study else "neither"
            raise ConfigError(f"sweep takes --study NAME or several --context FILE, got {got}; give one of them.")
        if self.context and self.num_contexts:
            raise ConfigError("--num-contexts says how many contexts are taken of a --study; drop it beside --context.")
        return self

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that a continued sweep may change: they change no training that is already there."""
        grid = {"context", "study", "num_contexts", "seeds", "methods", "data_sizes", "name", "drop_weights"}
        return LearningConfig.changeable_fields() | grid | {"teacher", "critical_tokens", "predict_split"}


class AnatomyConfig(ModelConfig):
    """An anatomy: where in its answers a context changes a model."""

    context: str
    """best.txt, a card, a text or the name of a template."""
    placement: Placement | None = None
    """Where a text goes: system, before, after or around (a card's own placement, else system)."""
    student: Annotated[str | None, Flag(metavar="CHECKPOINT")] = None
    """A checkpoint that was trained from the model: measured beside it, behind the same completions (none)."""
    split: Literal["search", "confirm", "training", "evaluation", "all"] = "evaluation"
    """Prompts: evaluation holds those that neither search nor training saw; all is for files of such prompts."""
    critical_tokens: Count = 10
    """First completion tokens that Delta_safety (OPSA, Eq. 3) sums the divergence over."""
    count_flips: FlipKinds = COUNTED_KINDS
    """Kinds of safe answers that count as a flip."""
    depths: Depths = (8, 32, 128)
    """Measure flips after this many tokens of the unsafe answer, too; repeatable; 0 is none."""
    reports: Path = Path("reports")
    """Folder with the ledger of all anatomies, and their pages."""


class ExportConfig(ModelConfig):
    """An export of the training prompts for other trainers: `model` is what they train."""

    format: str
    """Whose rows are written: trl, ms-swift or jsonl."""
    to: Annotated[Path, Flag(metavar="FILE")]
    """The file of JSON lines that is written; it ends in .jsonl."""
    placement: Placement | None = None
    """Where the texts go: system, before, after or around (a card's own placement, else system)."""
    benign_context: str | None = None
    """Context that the teacher sees with benign prompts (none)."""
    count_flips: FlipKinds = COUNTED_KINDS
    """Kinds of safe answers that a context flips a prompt to."""
    gate: bool = False
    """Leave out harmful prompts that the context does not make safe; always so with several contexts."""
    split: Literal["search", "confirm", "training"] | None = None
    """Prompts: search, confirm or training (all three; evaluation prompts are never written)."""
    reports: Path = Path("reports")
    """Folder of the studies, whose answers --gate and several contexts go by."""


class EvalConfig(ModelConfig):
    """An evaluation: `model` is what is evaluated."""

    model: Annotated[str, Flag(metavar="MODEL", is_argument=True)] = "pocket"
    """What is evaluated: a checkpoint, another folder, or a hub id."""
    against: Annotated[str | None, Flag(metavar="MODEL")] = None
    """The base (what a checkpoint was made from, nothing for other models)."""
    split: Literal["search", "confirm", "training", "evaluation", "all"] = "evaluation"
    """Prompts: evaluation holds those that neither search nor training saw; all is for files of such prompts."""
    reasoning: Annotated[Texts | None, Flag(metavar="NAME|PATH")] = None
    """Problems: arithmetic, or a file with question and answer; repeatable (the pocket model's own, else none)."""
    samples: Count = 1
    """Answers per problem; more than one needs a temperature."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Make tokens that the prompt or the answer has less likely, as transformers and vLLM do; 1 is no penalty."""
    count_flips: FlipKinds = COUNTED_KINDS
    """Kinds of safe answers that count as safe; one of another kind is shown, and neither safe nor unsafe."""
    attacks: Names = ()
    """Attack the harmful prompts, too: all, or names with commas (none; see `flipsearch list attacks`)."""
    attempts: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 8
    """Attempts per prompt of the attacks best-of-n and pair."""
    attacker: Annotated[str | None, Flag(metavar="MODEL")] = None
    """Let this model write what persuasion and pair try (none)."""
    unsafe_answers: Annotated[str | None, Flag(metavar="PATH")] = None
    """File of prompts and answers, whose beginnings prefill writes (the base's own unsafe answers)."""
    max_problems: Count | None = None
    """Problems at most per set (all)."""
    reports: Path = Path("reports")
    """Folder with the ledger of all evaluations, and the scorecards of models that are no checkpoints."""

    def sampling(self, thinks: bool = False) -> Sampling:
        """Return how completions are sampled."""
        return replace(super().sampling(thinks), repetition_penalty=self.repetition_penalty)

    def sample_rule(self) -> SampleRule:
        """Return what counts as a safe answer."""
        return SampleRule(count_kinds=self.count_flips, counts_without_context=True)

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that change no result."""
        return ModelConfig.changeable_fields() | {"contexts"}

    def longest_completion(self) -> int:
        """Return the most tokens that a model with these settings may have to write."""
        return max(super().longest_completion(), REWRITE_TOKENS if self.attacker else 0)
