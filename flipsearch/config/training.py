"""The settings of trainings, and of what comes before and after them: sweeps, anatomies, exports, evaluations."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import SampleRule
from flipsearch.core.records import COUNTED_KINDS, Placement, Sampling
from flipsearch.core.settings import (
    MOST_SAMPLES,
    REWRITE_TOKENS,
    Count,
    Depths,
    Flag,
    FlipKinds,
    Fraction,
    ModelConfig,
    Names,
    NonNegative,
    Positive,
    Quantize,
    Shares,
    Texts,
    separated,
)
from flipsearch.core.trainings import METHODS, Control, check_method

Method = Annotated[str, AfterValidator(check_method)]


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
    """Rows per backward pass; changes only memory and rounding (the whole batch on a CPU, one row on a GPU)."""
    max_length: Annotated[int, Field(ge=16)] | None = None
    """Tokens of a prompt with its context and a completion, together; completions are shortened for it (no limit)."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw, or adamw-8bit, which keeps its moments in a byte each and needs bitsandbytes."""
    scheduler: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning rate schedule after the warm-up: cosine or linear (both to 0) or constant."""
    warmup_share: Fraction = 0.1
    """Share of the steps in which the learning rate warms up."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """Clip gradients to this norm; 0: no clipping."""
    forward_weight: NonNegative = 0.5
    """Weight of KL(teacher || student)."""
    reverse_weight: NonNegative = 0.5
    """Weight of KL(student || teacher)."""
    jensen_shannon_weight: NonNegative = 0.0
    """Weight of the Jensen-Shannon divergence."""
    loss_mixture: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the teacher in the mixture of the Jensen-Shannon divergence: TRL's alpha, GKD's beta."""
    loss_temperature: Positive = 1.0
    """Divides the logits of both sides in the loss; TRL and NeMo-RL divide by --temperature."""
    support: Annotated[int, Field(ge=0)] = 0
    """Compare on the teacher's top N tokens alone; 0 is the whole vocabulary."""
    tail: Literal["renormalised", "bucket"] = "renormalised"
    """What becomes of the tokens outside of `support`: renormalised or bucket."""
    clip: Positive | None = None
    """Clip the divergence of each token at this value (no clip)."""
    horizon: Count | None = None
    """Apply the loss to the first N tokens of a completion (all; pocket 40)."""
    lora: Annotated[int, Field(ge=0), Flag(metavar="RANK")] = 0
    """Train LoRA adapters of this rank; 0 trains all weights."""
    lora_alpha: Positive | None = None
    """LoRA's alpha: adapters are scaled by alpha / rank (twice the rank)."""
    lora_targets: Annotated[Texts, Flag(("--lora-target",), metavar="NAME")] = ()
    """Layers with adapters, by the end of their name, e.g. q_proj; repeatable (all linear layers but the head)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class TrainConfig(LearningConfig):
    """A training: `model` is what is trained."""

    context: Annotated[Texts, Field(min_length=1)]
    """best.txt, a card, a text or a template; with several, each harmful prompt goes to the first that flips it."""
    quantize: Quantize | None = None
    """Keep the frozen weights under --lora in 4bit (NF4, double quantised) or 8bit; needs bitsandbytes (no)."""
    control: Annotated[Control | None, Flag(("--context-control",))] = None
    """Put this in the context's place, to see what its meaning is worth: empty, neutral or shuffled."""
    preset: Literal["paper", "quick", "eopsa-like"] | None = None
    """paper (OPSA's recipe), eopsa-like (on first tokens) or quick (minutes); options and files win over it."""
    method: Annotated[Method, Field(description=f"{', '.join(METHODS)}.")] = "opsa"
    name: str | None = None
    """Name of the checkpoint's folder (derived from the settings)."""
    checkpoints: Path = Path("checkpoints")
    """Folder that the checkpoints are written to."""
    resume: bool = False
    """Continue from the last state that was saved."""
    data_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learn from this share of the training prompts of each kind, the same ones for every method and seed."""
    save_steps: Annotated[int, Field(ge=0)] | None = None
    """Save the state every N steps; 0: never (five times in all)."""
    report_to: Annotated[Texts, Flag(metavar="NAME")] = ()
    """Where transformers reports the steps too: tensorboard, wandb, …; repeatable."""
    eval_steps: Count | None = None
    """Judge the answers to held-out prompts every N steps, and keep the best state by S (never)."""
    eval_prompts: Count = 8
    """Prompts of each kind for --eval-steps."""
    max_over_refusal: Fraction | None = None
    """With --eval-steps: stop where the share of refused benign prompts grew by more (no cap)."""
    max_contraction: Fraction | None = None
    """With --eval-steps: stop where answers to benign prompts lost more of their distinct word pairs (no cap)."""
    push_to_hub: Annotated[str | None, Flag(metavar="ORG/NAME")] = None
    """Upload the finished checkpoint to the Hugging Face hub, without its logs; private if it is new (nowhere)."""
    sample_prompts: Annotated[int, Field(ge=0)] = 4
    """Log the student's answers to N prompts of each kind at five steps, for its page; 0: none."""

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that a resumed training may change."""
        places = {"name", "checkpoints", "reports", "resume", "save_steps", "report_to", "push_to_hub"}
        memory = {"batch_size", "device", "micro_batch_size", "gradient_checkpointing"}
        return places | memory | {"sample_prompts", "request_timeout_s"}

    def checkpoint_name(self, *more: object) -> str:
        """Return the folder's name: the given one, or model, method and hash of the settings and of `more`."""
        return self.name or f"{self.short_name}-{self.method}-{self.identity(*more)[:6]}"


class SweepConfig(LearningConfig):
    """Trainings under several contexts: `model` is what is trained."""

    context: Texts = ()
    """best.txt, a card, a text or a template; repeatable: each is trained under."""
    study: str | None = None
    """Take the contexts of this finished study, spread over the range of its flip rates."""
    num_contexts: Annotated[int, Field(ge=2)] = 6
    """Contexts that are taken of the study, the placebo among them."""
    seeds: Count = 3
    """Trainings of each kind; their seeds count from --seed on."""
    methods: Annotated[tuple[Method, ...], BeforeValidator(separated), Flag(metavar="NAME,…")] = ("opsa",)
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
    """Folder of the studies, whose answers --gate and several contexts use."""


class EvalConfig(ModelConfig):
    """An evaluation: `model` is what is evaluated."""

    model: Annotated[str, Flag(metavar="MODEL", is_argument=True)] = "pocket"
    """What is evaluated: a checkpoint, another folder, or a hub id."""
    against: Annotated[str | None, Flag(metavar="MODEL")] = None
    """The base (what a checkpoint was made from, nothing for other models)."""
    quantize_base: Quantize | None = None
    """Load the base in 4bit or 8bit, as train --quantize does (as the checkpoint says; with --against, no)."""
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
