"""What will be asked of which model; everything that can be wrong is found here, before a model is loaded."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flipsearch.backends.base import check_model
from flipsearch.backends.models import POCKET_MODEL, TRAINING_FILE, base_model
from flipsearch.config import EVALUATIONS, EvalConfig
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.core.records import Prompt, content_id
from flipsearch.evaluation.answers import can_compare
from flipsearch.evaluation.reasoning import needs_algebra
from flipsearch.prompts.problems import ProblemSet, load_problems
from flipsearch.prompts.sets import PromptSet
from flipsearch.prompts.splitting import first_of_each_kind

SCORECARD_FILE = "scorecard.json"
DEFAULT_REASONING = {POCKET_MODEL: ("arithmetic",)}


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """One evaluation, checked."""

    config: EvalConfig
    """With the defaults that hang on the model filled in."""
    prompts: tuple[Prompt, ...]
    """At least one; set by set in nested order."""
    problem_sets: tuple[ProblemSet, ...]
    """None, where reasoning is not measured."""
    notes: tuple[str, ...]
    """What the user should know of how the files were read."""

    @property
    def base_config(self) -> EvalConfig | None:
        """The settings under which the base is asked the same; None if there is no base."""
        against = self.config.against
        return None if against is None else self.config.model_copy(update={"model": against})

    @property
    def prompts_id(self) -> str:
        """Content hash of the prompts asked."""
        return content_id("prompts", [prompt.prompt_id for prompt in self.prompts])

    @property
    def problems_id(self) -> str | None:
        """Content hash of the problems; None without any."""
        ids = [problems.problems_id for problems in self.problem_sets]
        return content_id("problem sets", ids) if ids else None

    @property
    def folder(self) -> Path:
        """Where the ledger of all evaluations lies."""
        return self.config.reports / EVALUATIONS

    @property
    def path(self) -> Path:
        """Where the scorecard goes: into a checkpoint's own folder, or to the reports."""
        model = Path(self.config.model)
        if _is_checkpoint(model):
            return model / SCORECARD_FILE
        identity = self.config.identity(self.prompts_id, self.problems_id)
        return self.folder / f"{model.name.split('@')[0].lower()}-{identity[:6]}" / SCORECARD_FILE


def plan_evaluation(config: EvalConfig, prompts: PromptSet) -> EvaluationPlan:
    """Return the plan of an evaluation on a prompt set.

    Raises ConfigError, PromptError or BackendError in one line: no prompts in the split, an unknown problem set,
    samples without a temperature, answers that need math-verify where it is not installed, a model that is not there.
    """
    if config.samples > 1 and config.temperature == 0:
        raise ConfigError(
            f"samples = {config.samples}, but greedy decoding gives the same answer each time; "
            "give a --temperature (0.6 is usual) or leave --samples out."
        )
    check_model(config)
    config = _with_defaults(config)
    chosen = _chosen(config, prompts)
    problem_sets = tuple(_problems(spec, config.max_problems) for spec in dict.fromkeys(config.reasoning or ()))
    plan = EvaluationPlan(config, chosen, problem_sets, (*prompts.notes, *(n for s in problem_sets for n in s.notes)))
    if plan.base_config is not None:
        check_model(plan.base_config)
    if _is_checkpoint(Path(config.model)) and not os.access(config.model, os.W_OK):
        raise ConfigError(f"the scorecard goes into '{config.model}', which cannot be written; copy the checkpoint.")
    return plan


def _with_defaults(config: EvalConfig) -> EvalConfig:
    base = base_model(config.model)
    against = config.against or (base if base != config.model else None)
    reasoning = DEFAULT_REASONING.get(base, ()) if config.reasoning is None else config.reasoning
    return config.model_copy(update={"against": against, "reasoning": reasoning})


def _chosen(config: EvalConfig, prompts: PromptSet) -> tuple[Prompt, ...]:
    found = [prompt for prompt in prompts.prompts if config.split in ("all", prompt.split)]
    if not found:
        has = ", ".join(f"{num} {split}" for split, num in Counter(p.split for p in prompts.prompts).items())
        raise PromptError(
            f"no prompt of '{prompts.name}' is set aside for split '{config.split}' (it has: {has}). "
            "Give --split all if neither search nor training saw these prompts, or name other files."
        )
    return first_of_each_kind(found, config.max_prompts, of_each_set=True)


def _problems(spec: str, most: int | None) -> ProblemSet:
    found = load_problems(spec)
    found = ProblemSet(found.name, found.problems[:most], found.notes)
    needing = needs_algebra(found.problems)
    if needing is not None and not can_compare():
        raise ConfigError(
            f"{needing.place}: the answer '{needing.answer[:40]}' is no plain number, and comparing it needs "
            "math-verify: pip install 'flipsearch[reasoning]'."
        )
    return found


def _is_checkpoint(model: Path) -> bool:
    return (model / TRAINING_FILE).is_file()
