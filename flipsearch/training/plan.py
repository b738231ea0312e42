"""What will be trained on what; everything that can be wrong is found here, before a model is loaded."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from flipsearch import registry
from flipsearch.config import TrainConfig
from flipsearch.errors import ConfigError, PromptError
from flipsearch.prompts.sets import PromptSet
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.records import Context, Prompt, content_id

LEDGER_FOLDER = "trainings"
PAPER = {"learning_rate": 1e-5, "train_batch_size": 64}
POCKET = {"learning_rate": 3e-4, "train_batch_size": 32, "epochs": 20.0, "horizon": 40}
"""The pocket model is small and learns from few prompts: it bears a larger rate and needs more passes. It decides
within 40 tokens."""
SETTINGS_OF_OPSA = ("forward_weight", "reverse_weight", "jensen_shannon_weight", "support", "tail", "clip", "horizon")
"""Without meaning for the rivals."""
LONGEST_NAME = 200
"""Bytes of a folder's name; ".partial" has to fit behind it."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """One training, checked."""

    config: TrainConfig
    """With the defaults that hang on the model filled in."""
    contexts: tuple[Context, ...]
    """For harmful prompts; at least one."""
    benign_context: Context | None
    """For benign prompts."""
    prompts: tuple[Prompt, ...]
    """At least one harmful one; in nested order."""
    notes: tuple[str, ...]
    """What the user should know of how the input was read."""

    @property
    def routes_by_answer(self) -> bool:
        """Whether the teacher is asked before training which harmful prompts a context flips."""
        return len(self.contexts) > 1 or self.config.gate

    @property
    def asks_judge(self) -> bool:
        """Whether answers are generated and judged before training."""
        return self.routes_by_answer or self.config.method != "opsa"

    @property
    def num_steps(self) -> int:
        """Optimizer steps: the same for every method on the same prompts."""
        assert self.config.train_batch_size is not None
        an_epoch = len(self.prompts) // self.config.train_batch_size
        return self.config.max_steps or max(1, math.ceil(self.config.epochs * an_epoch))

    @property
    def identity(self) -> str:
        """Content hash of contexts and prompts."""
        contexts = [context.context_id for context in (*self.contexts, self.benign_context) if context]
        return content_id(contexts, self.prompts_id)

    @property
    def prompts_id(self) -> str:
        """Content hash of the training prompts."""
        return content_id("prompts", [prompt.prompt_id for prompt in self.prompts])

    @property
    def folder(self) -> Path:
        """Where the finished checkpoint goes."""
        return self.config.checkpoints / self.config.checkpoint_name(self.identity)


def with_model_defaults(config: TrainConfig, given: Sequence[str]) -> TrainConfig:
    """Fill in what hangs on the model, but for the settings named in `given`."""
    own = POCKET if registry.base_model(config.model) == registry.ORGANISM else PAPER
    return config.model_copy(update={key: value for key, value in own.items() if key not in given})


def plan_training(
    config: TrainConfig, contexts: Sequence[Context], benign_context: Context | None, prompts: PromptSet
) -> TrainPlan:
    """Return the plan of a training.

    Raises ConfigError, PromptError or BackendError in one line: settings that do not go together, no harmful prompts,
    a model that is not there.
    """
    _check_settings(config)
    registry.check_model(config)
    if config.teacher is not None:
        registry.check_model(config.model_copy(update={"model": config.teacher}))
    chosen, notes = _chosen(config, prompts)
    size = min(config.train_batch_size or len(chosen), len(chosen))
    if size != config.train_batch_size:
        notes.append(f"A step takes all {size} prompts: there are no {config.train_batch_size}.")
    config = config.model_copy(update={"train_batch_size": size, "model": _absolute(config.model)})
    if registry.base_model(config.model) == registry.ORGANISM != config.model:
        notes.append("The model was made from the pocket model: it is synthetic, and shows behaviour, not capability.")
    if not any(prompt.kind == "benign" for prompt in chosen):
        notes.append("No benign prompts: nothing holds the model back from refusing more of them.")
    return TrainPlan(config, tuple(contexts), benign_context, chosen, (*prompts.notes, *notes))


def _check_settings(config: TrainConfig) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("training runs in one process, and was started in several; start it without a launcher.")
    if config.backend != "transformers":
        raise ConfigError(f"backend = {config.backend}: training runs on transformers; leave --backend out.")
    _check_name(config.name)
    if (config.method == "sft-teacher") != (config.teacher is not None):
        raise ConfigError("--method sft-teacher and --teacher MODEL (whose answers are learnt) go together.")
    if config.control and len(config.context) > 1:
        raise ConfigError(f"--control {config.control} stands in for one context; {len(config.context)} were given.")
    if config.method == "opsa" and not config.forward_weight + config.reverse_weight + config.jensen_shannon_weight:
        raise ConfigError("all divergence weights are 0: there is nothing to learn.")
    if config.dtype == "float16" or config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"dtype = {config.dtype}, device = {config.device}: training knows float32 and bfloat16 on cpu or cuda; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES."
        )
    size, rows = config.train_batch_size or 1, config.micro_batch_size
    if rows and size % rows:
        raise ConfigError(f"train_batch_size {size} is no multiple of micro_batch_size {rows}.")
    if config.lora and not find_spec("peft"):
        raise ConfigError("--lora needs peft: pip install 'flipsearch[lora]'.")


def _check_name(name: str | None) -> None:
    if name is None:
        return
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and len(name.encode()) <= LONGEST_NAME
    if not is_plain or name.strip(". ") == "":
        raise ConfigError(f"--name {name[:60]!r}: expected the name of a folder, no path; --checkpoints says where.")


def _chosen(config: TrainConfig, prompts: PromptSet) -> tuple[tuple[Prompt, ...], list[str]]:
    """Return the training prompts, and a note where they are not those of a training split."""
    has = Counter(prompt.split for prompt in prompts.prompts)
    splits: tuple[str | None, ...] = (config.split or "training",)
    notes = []
    if config.split is None and not has["training"]:
        splits = ("search", "confirm")
        notes.append("No prompts are set aside for training: it is on those for search and confirm.")
    found = [prompt for prompt in prompts.prompts if prompt.split in splits or config.split == "all"]
    kept = first_of_each_kind(found, config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in kept):
        saw = ", ".join(f"{num} {split}" for split, num in has.items())
        where = " or ".join(map(str, splits))
        raise PromptError(f"no harmful prompt of '{prompts.name}' in split {where} (it has: {saw}); see --split.")
    return kept, notes


def _absolute(model: str) -> str:
    """A local base by its absolute path: the checkpoint that names it may be moved."""
    is_local = model not in registry.BUILT_IN_MODELS and Path(model).is_dir()
    return str(Path(model).resolve()) if is_local else model
