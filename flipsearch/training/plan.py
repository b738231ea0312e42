"""What will be trained on what; everything that can be wrong is found here, before a model is loaded."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flipsearch import registry
from flipsearch.config import TrainConfig
from flipsearch.errors import PromptError
from flipsearch.prompts.sets import PromptSet
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.records import SPLITS, Context, Prompt, content_id
from flipsearch.training.checks import check_settings
from flipsearch.training.inputs import TrainInputs
from flipsearch.training.processes import num_processes

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
    registry.check_model(config)
    if config.teacher is not None:
        registry.check_model(config.model_copy(update={"model": config.teacher}))
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
    if registry.base_model(config.model) == registry.ORGANISM != config.model:
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
    is_local = model not in registry.BUILT_IN_MODELS and Path(model).is_dir()
    return str(Path(model).resolve()) if is_local else model
