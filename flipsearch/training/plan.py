"""What a training will do, checked before a model is loaded: settings, contexts and prompts.

    settings + context cards --plan_training--> TrainPlan --run_training--> checkpoint

A context's card says which model and prompts it was found for; what the user gives wins over it. Whatever can be wrong
with the settings, the launch, the contexts or the prompts is raised here, in one line. Knows no weights.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flipsearch.backends.base import check_model, model_identity
from flipsearch.backends.models import BUILT_IN_MODELS, POCKET_MODEL, base_model
from flipsearch.config import ExportConfig, TrainConfig
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.core.records import SPLITS, Context, Placement, Prompt, content_id
from flipsearch.core.settings import as_typed, check_folder_name, make_config
from flipsearch.core.trainings import METHODS, TrainingMethod
from flipsearch.prompts.sets import PromptSet, prompts_of
from flipsearch.prompts.splitting import first_of_each_kind, share_of_each_kind
from flipsearch.settings import card_settings, library_for, resolve
from flipsearch.templating.library import Card, control_context, given_cards, given_contexts
from flipsearch.training.checks import check_launch, check_settings, settled_rollouts
from flipsearch.training.processes import num_processes

PAPER = {"learning_rate": 1e-5, "train_batch_size": 64}
_PAPER_RECIPE: Mapping[str, Any] = {
    **PAPER,
    "epochs": 3.0,
    "optimizer": "adamw",
    "scheduler": "cosine",
    "warmup_share": 0.1,
    "lora": 0,
    "temperature": 0.6,
    "top_p": 1.0,
    "top_k": 0,
    "max_length": 4096,
    "max_tokens": 4096,
    "think_tokens": 0,
    "forward_weight": 0.5,
    "reverse_weight": 0.5,
    "jensen_shannon_weight": 0.0,
    "support": 512,
    "tail": "renormalised",
    "clip": None,
    "horizon": None,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER_RECIPE,
    # Tokens behind the horizon count for nothing, so none are written.
    "eopsa-like": {**_PAPER_RECIPE, "horizon": 128, "max_tokens": 128},
    "quick": {
        "learning_rate": 3e-5,
        "train_batch_size": 8,
        "max_steps": 20,
        "scheduler": "constant",
        "warmup_share": 0.0,
        "max_tokens": 64,
        "think_tokens": 0,
        "horizon": 64,
    },
}
"""Preset -> its settings; paper is the recipe of arXiv 2605.15239 (the loss divides logits by --temperature, too)."""
PAPER_STEPS, PAPER_TOKENS = 1872, 4096
"""Optimizer steps of the paper's runs, and the most tokens of a prompt and its completion there."""
STUDY_PAGE = "leaderboard.html"
LITTLE = 0.1
"""Steps times learning rate, as a share of the paper's, below which a user is warned."""
FEW_STEPS = 20
"""With no more steps than this, one that is lost to the warm-up matters."""
POCKET = {"learning_rate": 3e-4, "train_batch_size": 32, "epochs": 6.0, "horizon": 40}
"""Small, with few prompts, it needs a larger rate and more passes; it decides within 40 tokens."""
LEFT_TO_POCKET = ("learning_rate", "horizon")
"""What the preset quick leaves to it: it makes a training short, and no other one."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """One training, checked."""

    config: TrainConfig
    """With the defaults that depend on the model and what the cards say filled in."""
    contexts: tuple[Context, ...]
    """For harmful prompts; at least one."""
    benign_context: Context | None
    prompts: tuple[Prompt, ...]
    """At least one harmful one; in nested order."""
    notes: tuple[str, ...]
    searched_on: frozenset[str]
    """Identities of the models of the contexts' cards."""
    validation: tuple[Prompt, ...] = ()
    """Prompts that are answered while it trains, and not learnt from."""
    pages: Mapping[str, Path] = field(default_factory=dict)
    """Study that a context's card names -> its page, as far as there is one."""

    @property
    def method(self) -> TrainingMethod:
        """The row of METHODS."""
        return METHODS[self.config.method]

    @property
    def routes_by_answer(self) -> bool:
        """Whether the frozen model answers before training, to see which harmful prompts a context flips."""
        return len(self.contexts) > 1 or self.config.gate

    @property
    def needs_judge(self) -> bool:
        """Whether answers are generated and judged before training."""
        return self.routes_by_answer or self.method.is_supervised

    @property
    def routes(self) -> list[dict[str, Context]]:
        """For each context: prompt id -> what the teacher reads with it, were all harmful prompts under that one."""
        by_kind = [{"harmful": context, "benign": self.benign_context} for context in self.contexts]
        return [{p.prompt_id: c for p in self.prompts if (c := of_kind[p.kind])} for of_kind in by_kind]

    def within_length(self, longest: int) -> "TrainPlan":
        """Return the plan whose completions leave room for a prompt of `longest` tokens within --max-length."""
        config = self.config
        budget = config.sampling().longest - config.sampling().max_tokens
        left = math.inf if config.max_length is None else config.max_length - longest - budget
        if left < 1:
            raise ConfigError(
                f"--max-length is {config.max_length:,}, but a prompt has {longest:,} tokens with its context"
                f"{f' and a thought up to {budget:,}' if budget else ''}: no completion fits. Give a larger one."
            )
        if left >= config.sampling().max_tokens:
            return self
        note = f"A completion has at most {left:,} tokens: the longest prompt has {longest:,} of {config.max_length:,}."
        return replace(self, config=config.model_copy(update={"max_tokens": left}), notes=(*self.notes, note))

    @property
    def num_steps(self) -> int:
        """Optimizer steps: the same for every method on the same prompts."""
        assert self.config.train_batch_size is not None
        steps_per_epoch = len(self.prompts) // self.config.train_batch_size
        return self.config.max_steps or max(1, math.ceil(self.config.epochs * steps_per_epoch))

    @property
    def num_warmup_steps(self) -> int:
        """Steps at the start whose learning rate rises, from 0 at the first one."""
        return round(self.config.warmup_share * self.num_steps)

    @property
    def tokens_at_most(self) -> int:
        """Most completion tokens that are learnt from."""
        assert self.config.train_batch_size is not None
        return self.num_steps * self.config.train_batch_size * self.config.sampling().longest

    @property
    def prompts_id(self) -> str:
        """Content hash of the training prompts."""
        return content_id("prompts", [prompt.prompt_id for prompt in self.prompts])

    @property
    def identity(self) -> str:
        """Content hash of contexts and prompts."""
        contexts = [context.context_id for context in (*self.contexts, self.benign_context) if context]
        return content_id(contexts, self.prompts_id)

    @property
    def inputs_id(self) -> str:
        """Content hash of all that the training follows from; the weights of the base are read for it."""
        return self.config.identity(self.identity, model_identity(self.config), num_processes())

    @property
    def folder(self) -> Path:
        """Where the finished checkpoint goes."""
        return self.config.checkpoints / self.config.checkpoint_name(self.identity)

    @property
    def study_pages(self) -> dict[str, str]:
        """The pages of the studies, seen from the checkpoint's folder: both may be moved together."""
        return {study: os.path.relpath(page, self.folder) for study, page in self.pages.items()}

    def notes_on(self, model_id: str) -> tuple[str, ...]:
        """Return the notes, with one more if a context was found on another model than `model_id`, the one loaded."""
        note = (
            f"A context was found on '{self.config.model}' with other weights, precision, chat template or thinking "
            "switch than are trained here: its flip rate may differ."
        )
        return self.notes if self.searched_on <= {model_id} else (*self.notes, note)


def plan_training(*sources: Mapping[str, Any]) -> TrainPlan:
    """Return the plan of a training from mappings of TrainConfig's fields, of which the later ones win."""
    config, cards = _read_settings(sources)
    config = config.model_copy(update={"rollouts": settled_rollouts(config)})
    contexts, benign_context = _read_contexts(config)
    check_launch(config)
    check_settings(config)
    check_model(config)
    if config.teacher is not None:
        check_model(config.model_copy(update={"model": config.teacher}))
    prompt_set = prompts_of(config)
    prompts, validation = _without_validation(config, training_prompts(config, prompt_set))
    prompts = share_of_each_kind(prompts, config.data_share)
    size = min(config.train_batch_size or len(prompts), len(prompts))
    size -= size % num_processes()  # each takes as many
    if size == 0:
        raise PromptError(f"{len(prompts)} prompts for {num_processes()} processes; start fewer, or give more prompts.")
    notes = [*prompt_set.notes_beside_groups, *_preset_notes(config), *_notes(config, prompts, size)]
    # vLLM gives the same weights another identity: only identities of one backend are compared.
    searched_on = frozenset(card.model_id for card in cards if card.backend == config.backend and card.model_id)
    model = config.model
    if model not in BUILT_IN_MODELS and Path(model).exists():
        model = str(Path(model).resolve())  # the checkpoint that names its base may be moved
    config = config.model_copy(update={"train_batch_size": size, "model": model})
    known = (searched_on, validation, _study_pages(config))
    plan = TrainPlan(config, contexts, benign_context, prompts, tuple(notes), *known)
    if config.eval_steps and config.eval_steps > plan.num_steps:
        raise ConfigError(f"--eval-steps is {config.eval_steps}, but there are {plan.num_steps} steps; give fewer.")
    return replace(plan, notes=(*plan.notes, *_step_notes(plan)))


def _read_settings(sources: Sequence[Mapping[str, Any]]) -> tuple[TrainConfig, list[Card]]:
    given = {key: value for source in sources for key, value in source.items() if value is not None}
    named = given.get("context")
    if not named:
        raise ConfigError("no context given; train needs --context best.txt, a card, a text or the name of a template.")
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"--context is {names!r:.80}: expected a text or a list of texts.")
    cards = [card for name in names for card in given_cards(name)]
    typed = make_config(TrainConfig, given, {"context": names})
    config = make_config(TrainConfig, card_settings(cards, given), preset_settings(typed), given, {"context": names})
    defaults = dict(POCKET if base_model(config.model) == POCKET_MODEL else PAPER) | preset_settings(config)
    decided = typed.model_fields_set
    config = resolve(config.model_copy(update={key: value for key, value in defaults.items() if key not in decided}))
    named_model = given.get("model") or (cards[0].model if cards else None) or config.model
    cards += given_cards(config.benign_context) if config.benign_context else []
    check_cards(cards, named_model)
    return config, cards


def preset_settings(config: TrainConfig) -> dict[str, Any]:
    """Return what the preset of a config says; the paper's loss divides logits by the temperature of the rollouts."""
    recipe = dict(PRESETS.get(config.preset or "", {}))
    if "support" in recipe:
        is_typed = "temperature" in config.model_fields_set
        recipe["loss_temperature"] = (config.temperature if is_typed else recipe["temperature"]) or 1.0
    if config.preset == "quick" and base_model(config.model) == POCKET_MODEL:
        recipe |= {name: POCKET[name] for name in LEFT_TO_POCKET}
    return recipe


def _preset_notes(config: TrainConfig) -> list[str]:
    """Return notes on the settings that are not the preset's, and on those that it leaves to the model."""

    def shown(names: Sequence[str]) -> str:
        return ", ".join(as_typed(TrainConfig, name, getattr(config, name)) for name in names)

    recipe = preset_settings(config)
    others = [name for name, value in recipe.items() if getattr(config, name) != value]
    left = [n for n, value in recipe.items() if n not in others and value != PRESETS[str(config.preset)].get(n, value)]
    # What the preset's steps stand for.
    others += ["max_steps"] if config.max_steps and "epochs" in recipe else []
    notes = [f"The preset {config.preset} with what the pocket model needs: {shown(left)}."] if left else []
    return [*notes, *([f"The preset {config.preset} with other settings: {shown(others)}."] if others else [])]


def check_cards(cards: Sequence[Card], model: str) -> None:
    """Raise ConfigError for a context of another model: a flip rate holds for one model."""
    for card in cards:
        if card.model not in (None, model):
            raise ConfigError(
                f"the context's card says that it was found for '{card.model}', but the model is '{model}'. "
                "Search with that model, or give the text alone, in a file without a card beside it."
            )


def _study_pages(config: TrainConfig) -> dict[str, Path]:
    """Return the pages of the studies that the contexts' cards name: beside the card, or under the reports."""
    pages = {}
    for name in (*config.context, *filter(None, [config.benign_context])):
        for study in {card.study for card in given_cards(name) if card.study}:
            places = [Path(name).with_name(STUDY_PAGE)]
            with suppress(ConfigError):  # a card is a file that may be anyone's
                check_folder_name("study", study, "--reports")
                places.insert(0, config.reports / study / STUDY_PAGE)
            if there := [place for place in places if place.is_file()]:
                pages[study] = there[-1]
    return pages


def _read_contexts(config: TrainConfig) -> tuple[tuple[Context, ...], Context | None]:
    contexts, benign = read_contexts(config.context, config)
    if config.control and len(contexts) > 1:
        raise ConfigError(f"--context-control {config.control} takes one context; {len(contexts)} were given.")
    if config.control:
        contexts = (control_context(library_for(config.model, config.contexts), config.control, contexts[0]),)
    return contexts, benign


def read_contexts(
    names: Sequence[str], config: TrainConfig | ExportConfig, placement: Placement | None = None
) -> tuple[tuple[Context, ...], Context | None]:
    """Return the contexts for harmful prompts and that for benign ones; `placement` overrides those of cards."""
    library = library_for(config.model, config.contexts)
    contexts = given_contexts(names, library, placement)
    benign = given_contexts([config.benign_context], library, placement) if config.benign_context else []
    if len(benign) > 1:
        raise ConfigError(f"--benign-context takes one context; {len(benign)} were given.")
    return tuple(contexts), benign[0] if benign else None


def training_prompts(config: TrainConfig | ExportConfig, prompt_set: PromptSet) -> tuple[Prompt, ...]:
    """Return the training prompts: all that the evaluation leaves, or those of one split."""
    by_default = tuple(split for split in SPLITS if split != "evaluation")
    splits = {None: by_default, "all": SPLITS}.get(config.split, (config.split,))
    in_splits = [prompt for prompt in prompt_set.prompts if prompt.split in splits]
    prompts = first_of_each_kind(in_splits, config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in prompts):
        counts = Counter(prompt.split for prompt in prompt_set.prompts)
        has = ", ".join(f"{num} {split}" for split, num in counts.items())
        where = ", ".join(map(str, splits))
        raise PromptError(f"no harmful prompt of '{prompt_set.name}' in split {where} (it has: {has}); see --split.")
    return prompts


def _without_validation(
    config: TrainConfig, prompts: tuple[Prompt, ...]
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the prompts to learn from, and the last ones of each kind, which --eval-steps leaves out of them."""
    if not config.eval_steps:
        return prompts, ()
    validation = first_of_each_kind(prompts[::-1], config.eval_prompts)
    groups = {prompt.group or prompt.prompt_id for prompt in validation}
    left = tuple(prompt for prompt in prompts if (prompt.group or prompt.prompt_id) not in groups)
    if not any(prompt.kind == "harmful" for prompt in left):
        raise PromptError(f"--eval-prompts {config.eval_prompts} leaves no harmful prompt to learn from; give fewer.")
    return left, validation


def _notes(config: TrainConfig, prompts: Sequence[Prompt], step_size: int) -> list[str]:
    notes = []
    if step_size != config.train_batch_size:
        notes.append(f"A step takes {step_size} prompts, not {config.train_batch_size}: there are no more.")
    if config.split == "all":
        notes.append("Trained on the evaluation prompts too: evaluate on others, not on these.")
    if base_model(config.model) == POCKET_MODEL != config.model:
        notes.append("The model was made from the pocket model: it is synthetic, and shows behaviour, not capability.")
    return [*notes, *kind_notes(prompts)]


def kind_notes(prompts: Sequence[Prompt]) -> list[str]:
    """Return a note if the training prompts are of one kind alone."""
    if any(prompt.kind == "benign" for prompt in prompts):
        return []
    return ["No benign prompts: nothing holds the model back from refusing more of them."]


def _step_notes(plan: TrainPlan) -> Iterator[str]:
    rate, num_steps = plan.config.learning_rate or 0.0, plan.num_steps
    share = num_steps * rate / (PAPER_STEPS * PAPER["learning_rate"])
    if share < LITTLE:
        steps = "1 step" if num_steps == 1 else f"{num_steps:,} steps"
        yield (
            f"{steps} at a rate of {rate:g} {'is' if num_steps == 1 else 'are'} {100 * share:.1f} % of the "
            f"paper's {PAPER_STEPS:,} at {PAPER['learning_rate']:g}: the model may hardly change. Give more prompts or "
            "--epochs, a smaller --train-batch-size or a larger --learning-rate."
        )
    if plan.num_warmup_steps > 0 and num_steps <= FEW_STEPS:
        yield (
            f"The first of {num_steps:,} steps has a rate of 0 and changes nothing (warm-up): --warmup-share 0 learns "
            "from it."
        )
