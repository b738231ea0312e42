"""What a training is asked for: its settings, the contexts that they name, and what a context's card adds to both.

What will be trained on what; everything that can be wrong is found here, before a model is loaded.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flipsearch.backends.base import check_model
from flipsearch.backends.models import BUILT_IN_MODELS, POCKET_MODEL, base_model
from flipsearch.config import TrainConfig, make_config
from flipsearch.core.errors import ConfigError, PromptError, unknown_name
from flipsearch.core.records import SPLITS, Context, Prompt, content_id
from flipsearch.defaults import resolve
from flipsearch.prompts.sets import PromptSet
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.templating.given import Card, given_cards, given_contexts
from flipsearch.templating.library import control_context, load_library
from flipsearch.training.processes import is_sharded, num_processes

LONGEST_NAME = 200
"""Bytes of a folder's name; ".partial" has to fit behind it."""
PAPER = {"learning_rate": 1e-5, "train_batch_size": 64}
POCKET = {"learning_rate": 3e-4, "train_batch_size": 32, "epochs": 6.0, "horizon": 40}
"""The pocket model is small and learns from few prompts: it bears a larger rate and needs more passes. It decides
within 40 tokens."""


@dataclass(frozen=True, slots=True)
class TrainInputs:
    """What was asked for, complete."""

    config: TrainConfig
    """With what the cards say and the defaults that hang on the model filled in."""
    contexts: tuple[Context, ...]
    """For harmful prompts; at least one."""
    benign_context: Context | None
    """For benign prompts."""
    found_on: tuple[str, ...]
    """Identities of the models that the cards say the contexts were found on."""


def train_inputs(*sources: Mapping[str, Any]) -> TrainInputs:
    """Return what `sources` ask for, fields of TrainConfig of which the later ones win.

    The first context's card says which model and prompts it is for, and what is given here wins over it. Raises
    ConfigError or PluginError in one line: no context, a setting or text that cannot be used, a card of another model.
    """
    given = {key: value for source in sources for key, value in source.items() if value is not None}
    named = _named(given.get("context"))
    cards = [card for one in named for card in given_cards(one)]
    config = make_config(TrainConfig, _of_card(cards, given), given, {"context": named})
    config = resolve(_with_model_defaults(config, given))
    of_benign = given_cards(config.benign_context) if config.benign_context else []
    _check_cards([*cards, *of_benign], config.model)
    library = load_library(config.contexts)
    contexts = given_contexts(config.context, library)
    if config.control:
        contexts = [control_context(library, config.control, _only(contexts, f"control {config.control}"))]
    benign = given_contexts([config.benign_context], library) if config.benign_context else []
    # vLLM gives the same weights another identity: there is nothing to compare.
    known = [card for card in (*cards, *of_benign) if card.backend == config.backend]
    found_on = tuple(card.model_id for card in known if card.model_id)
    return TrainInputs(config, tuple(contexts), _only(benign, "benign-context") if benign else None, found_on)


def _only(contexts: Sequence[Context], flag: str) -> Context:
    if len(contexts) > 1:
        raise ConfigError(f"--{flag} stands in for one context; {len(contexts)} were given.")
    return contexts[0]


def _named(context: object) -> Sequence[str]:
    if not context:
        raise ConfigError("no context given; train needs --context best.txt, a card, a text or the name of a template.")
    named = [context] if isinstance(context, str) else context
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) for one in named):
        raise ConfigError(f"context = {context!r}: expected a text or a list of texts.")
    return named


def _of_card(cards: Sequence[Card], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the first card stands for, those given apart."""
    if not cards or cards[0].model is None:
        return {}
    card = cards[0]
    found: dict[str, Any] = {"model": card.model}
    if given.get("model", card.model) == card.model:
        found |= {"thinking": card.sampling.thinking, "max_tokens": card.sampling.max_tokens}
    if not given.keys() & {"prompts", "harmful", "benign"}:
        found |= card.prompts.model_dump()
    return found


def _check_cards(cards: Sequence[Card], model: str) -> None:
    """Refuse a card that was found for another model: a flip rate holds for one model."""
    for card in cards:
        if card.model is not None and card.model != model:
            raise ConfigError(
                f"the context's card says that it was found for '{card.model}', but the model is '{model}'. "
                "Search with that model, or give the text alone, in a file without a card beside it."
            )


def _with_model_defaults(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    own = POCKET if base_model(config.model) == POCKET_MODEL else PAPER
    return config.model_copy(update={key: value for key, value in own.items() if key not in given})


SETTINGS_OF_OPSA = ("forward_weight", "reverse_weight", "jensen_shannon_weight", "support", "tail", "clip", "horizon")
"""Without meaning for the rivals."""


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
    found_on: tuple[str, ...]
    """Identities of the models that the contexts were found on, as their cards say."""

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

    def notes_on(self, model_id: str) -> tuple[str, ...]:
        """Return the notes, and one if the contexts were found on another model than `model_id`, the one loaded."""
        if set(self.found_on) <= {model_id}:
            return self.notes
        note = (
            f"A context was found on '{self.config.model}' with other weights, precision, chat template or thinking "
            "switch than are trained here: its flip rate may differ."
        )
        return (*self.notes, note)


def plan_training(inputs: TrainInputs, prompts: PromptSet) -> TrainPlan:
    """Return the plan of a training.

    Raises ConfigError, PromptError or BackendError in one line: settings that do not go together, no harmful prompts,
    a model that is not there.
    """
    config = inputs.config
    check_settings(config)
    check_model(config)
    if config.teacher is not None:
        check_model(config.model_copy(update={"model": config.teacher}))
    chosen = _chosen(config, prompts)
    notes: list[str] = []
    size = min(config.train_batch_size or len(chosen), len(chosen))
    size -= size % num_processes()  # each takes as many
    if size == 0:
        raise PromptError(f"{len(chosen)} prompts for {num_processes()} processes; start fewer, or give more prompts.")
    if size != config.train_batch_size:
        notes.append(f"A step takes {size} prompts: there are only {len(chosen)}.")
    if config.split == "all":
        notes.append("Trained on the evaluation prompts too: evaluate on others, not on these.")
    config = config.model_copy(update={"train_batch_size": size, "model": _absolute(config.model)})
    if base_model(config.model) == POCKET_MODEL != config.model:
        notes.append("The model was made from the pocket model: it is synthetic, and shows behaviour, not capability.")
    if not any(prompt.kind == "benign" for prompt in chosen):
        notes.append("No benign prompts: nothing holds the model back from refusing more of them.")
    notes = [*prompts.notes, *notes]
    return TrainPlan(config, inputs.contexts, inputs.benign_context, chosen, tuple(notes), inputs.found_on)


def _chosen(config: TrainConfig, prompts: PromptSet) -> tuple[Prompt, ...]:
    """Return the training prompts: all that the evaluation leaves, or those of one split."""
    by_default = tuple(split for split in SPLITS if split != "evaluation")
    splits = {None: by_default, "all": SPLITS}.get(config.split, (config.split,))
    found = [prompt for prompt in prompts.prompts if prompt.split in splits]
    kept = first_of_each_kind(found, config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in kept):
        saw = ", ".join(f"{num} {split}" for split, num in Counter(one.split for one in prompts.prompts).items())
        where = ", ".join(map(str, splits))
        raise PromptError(f"no harmful prompt of '{prompts.name}' in split {where} (it has: {saw}); see --split.")
    return kept


def _absolute(model: str) -> str:
    """A local base by its absolute path: the checkpoint that names it may be moved."""
    is_local = model not in BUILT_IN_MODELS and Path(model).is_dir()
    return str(Path(model).resolve()) if is_local else model


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError in one line for settings that cannot be trained with."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError("training is sharded by FSDP 2, not by DeepSpeed: accelerate launch --use_fsdp …")
    if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("training is sharded by FSDP 2 alone: accelerate launch --use_fsdp --fsdp_version 2 …")
    if is_sharded() and config.lora:
        raise ConfigError("--lora trains adapters alone, for which FSDP is not made: launch it without --use_fsdp.")
    if config.backend != "transformers":
        raise ConfigError(f"backend = {config.backend}: training runs on transformers; leave --backend out.")
    _check_name(config.name)
    if (config.method == "sft-teacher") != (config.teacher is not None):
        raise ConfigError("--method sft-teacher and --teacher MODEL (whose answers are learnt) go together.")
    if config.method == "opsa" and not config.forward_weight + config.reverse_weight + config.jensen_shannon_weight:
        raise ConfigError("all divergence weights are 0: there is nothing to learn.")
    if config.dtype == "float16" or config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"dtype = {config.dtype}, device = {config.device}: training knows float32 and bfloat16 on cpu or cuda; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES."
        )
    size, rows, processes = config.train_batch_size or 1, config.micro_batch_size or 1, num_processes()
    if size % (rows * processes):
        parts = f"micro_batch_size {rows}" if processes == 1 else f"{processes} processes of micro_batch_size {rows}"
        raise ConfigError(f"train_batch_size {size} is no multiple of {parts}.")
    if config.lora and not find_spec("peft"):
        raise ConfigError("--lora needs peft: pip install 'flipsearch[lora]'.")
    if config.report_to:
        _check_reporting(config.report_to)


def _check_reporting(names: Sequence[str]) -> None:
    """Refuse what transformers could not report to: it finds that out when the model is loaded."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    ready = {*get_available_reporting_integrations(), "flyte"}  # which it does not list
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            todo = "Leave it out to report nowhere else."
            raise ConfigError(unknown_name("--report-to", name, INTEGRATION_TO_CALLBACK, todo))
        if name not in ready:
            raise ConfigError(
                f"--report-to {name}: its package is not installed or not set up here; do so, or drop it."
            )


def _check_name(name: str | None) -> None:
    if name is None:
        return
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and len(name.encode()) <= LONGEST_NAME
    if not is_plain or name.strip(". ") == "":
        raise ConfigError(f"--name {name[:60]!r}: expected the name of a folder, no path; --checkpoints says where.")


NUM_SAVES = 5
MOST_ROWS = {True: 32, False: 1}
"""Rows a backward pass on a CPU and on anything else, where the user leaves it open: a GPU's memory is dear."""
