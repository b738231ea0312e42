"""What is evaluated on which model; everything that can be wrong is found here, before a model is loaded."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from flipsearch.backends.base import check_model
from flipsearch.backends.models import POCKET_MODEL, TRAINING_FILE, base_model, require_local_model
from flipsearch.config import EVALUATIONS, EvalConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Prompt, content_id
from flipsearch.evaluation.answers import plain_number
from flipsearch.evaluation.programs import check_sandbox
from flipsearch.prompts.problems import ProblemSet, load_problems
from flipsearch.prompts.sets import PromptSet, prompts_of_split

SCORECARD_FILE = "scorecard.json"
DEFAULT_REASONING = {POCKET_MODEL: ("arithmetic",)}
"""Base model -> the problem sets that it and its checkpoints are evaluated on by default."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """One evaluation, checked."""

    config: EvalConfig
    """With the defaults that depend on the model filled in."""
    prompts: tuple[Prompt, ...]
    """At least one; set by set in nested order."""
    problem_sets: tuple[ProblemSet, ...]
    notes: tuple[str, ...]

    @property
    def base_config(self) -> EvalConfig | None:
        """The settings for the base, which gets the same prompts and problems; None if there is no base."""
        against = self.config.against
        return None if against is None else self.config.model_copy(update={"model": against, "omit": ()})

    @property
    def prompts_id(self) -> str:
        """Content hash of the prompts."""
        return content_id("prompts", [prompt.prompt_id for prompt in self.prompts])

    @property
    def problems_id(self) -> str | None:
        """Content hash of the problems; None without any."""
        ids = [problems.problems_id for problems in self.problem_sets]
        return content_id("problem sets", ids) if ids else None

    @property
    def folder(self) -> Path:
        """The folder of the ledger of all evaluations."""
        return self.config.reports / EVALUATIONS

    @property
    def path(self) -> Path:
        """Where the scorecard is written: into a checkpoint's own folder, or to the reports."""
        model = Path(self.config.model)
        if _is_checkpoint(model):
            return model / SCORECARD_FILE
        identity = self.config.identity(self.prompts_id, self.problems_id)
        return self.folder / f"{model.name.split('@')[0].lower()}-{identity[:6]}" / SCORECARD_FILE


def plan_evaluation(config: EvalConfig, prompts: PromptSet) -> EvaluationPlan:
    """Return the plan of an evaluation on a prompt set; whatever can be wrong is raised in one line."""
    if config.samples > 1 and config.temperature == 0:
        raise ConfigError(
            f"--samples is {config.samples}, but greedy decoding gives the same answer each time; "
            "give a --temperature (0.6 is usual) or leave --samples out."
        )
    check_model(config)
    base = base_model(config.model)
    against = config.against
    if against is None and base != config.model:
        against = require_local_model(base, f"'{Path(config.model) / TRAINING_FILE}'", "--against")
    reasoning = DEFAULT_REASONING.get(base, ()) if config.reasoning is None else config.reasoning
    config = config.model_copy(update={"against": against, "reasoning": reasoning})
    chosen = prompts_of_split(prompts, config.split, config.max_prompts)
    problem_sets = tuple(_problem_set(spec, config) for spec in dict.fromkeys(reasoning))
    notes = *prompts.notes, *(note for problems in problem_sets for note in problems.notes)
    plan = EvaluationPlan(config, chosen, problem_sets, notes)
    if plan.base_config is not None:
        check_model(plan.base_config)
    if _is_checkpoint(Path(config.model)) and not os.access(config.model, os.W_OK):
        raise ConfigError(f"the scorecard goes into '{config.model}', which cannot be written; copy the checkpoint.")
    return plan


def _problem_set(spec: str, config: EvalConfig) -> ProblemSet:
    problems = load_problems(spec, config.seed)
    problems = replace(problems, problems=problems.problems[: config.max_problems])
    if problems.runs_programs:
        check_sandbox()
        return problems
    others = (problem for problem in problems.problems if not problem.num_choices)
    expression = next((problem for problem in others if plain_number(problem.answer) is None), None)
    if expression is not None and not find_spec("math_verify"):
        raise ConfigError(
            f"{expression.place}: the answer '{expression.answer[:40]}' is no plain number, and comparing it needs "
            "math-verify: pip install 'flipsearch[reasoning]'."
        )
    return problems


def _is_checkpoint(model: Path) -> bool:
    return (model / TRAINING_FILE).is_file()
