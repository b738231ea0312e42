"""What is evaluated on which model; everything that can be wrong is found here, before a model is loaded."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from flipsearch.backends.base import check_model
from flipsearch.backends.models import POCKET_MODEL, TRAINING_FILE, base_model, fingerprint, require_local_model
from flipsearch.config import EVALUATIONS, EvalConfig, is_endpoint
from flipsearch.core.errors import BackendError, ConfigError, PromptError
from flipsearch.core.records import Prompt, content_id
from flipsearch.core.settings import Quantize
from flipsearch.evaluation.answers import check_sandbox, plain_number
from flipsearch.prompts.attacks import ATTACKS, attack_names, gives_tokens
from flipsearch.prompts.files import TEXT_COLUMNS, cell, read_table
from flipsearch.prompts.problems import ProblemSet, load_problems
from flipsearch.prompts.rows import ANSWER_COLUMNS
from flipsearch.prompts.sets import PromptSet, prompts_of_split

SCORECARD_FILE = "scorecard.json"
KNOW_PENALTY = ("transformers", "vllm")
"""Backends that know --repetition-penalty."""
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
    unsafe_answers: Mapping[str, str] = field(default_factory=dict)
    """Prompt id -> an unsafe answer that the user has."""

    @property
    def own_config(self) -> EvalConfig:
        """The settings for the evaluated model: a checkpoint's weights are rounded as the training had them."""
        return self.config.model_copy(update={"quantize_base": None})

    @property
    def base_config(self) -> EvalConfig | None:
        """The settings for the base, which gets the same prompts and problems; None if there is no base."""
        against = self.config.against
        return None if against is None else self.config.model_copy(update={"model": against, "omit": ()})

    @property
    def attacker_config(self) -> EvalConfig | None:
        """The settings of the attacker model; None without one."""
        return None if self.config.attacker is None else self.own_config.for_model(self.config.attacker)

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
    notes = [*prompts.notes_beside_groups]
    if base != config.model:
        config, own_notes = _of_checkpoint(config, base)
        notes += own_notes
    against = config.against
    if config.quantize_base:
        _check_quantize(config.quantize_base, config)
    if config.repetition_penalty != 1:
        unable = [m for m in (config.model, against) if m and is_endpoint(m)]
        given = [*unable, *([f"--backend {config.backend}"] if config.backend not in KNOW_PENALTY else [])]
        if given:
            raise ConfigError(
                f"--repetition-penalty {config.repetition_penalty:g}: {given[0]} does not know it; leave it out, or "
                f"give a local model and --backend {' or '.join(KNOW_PENALTY)}."
            )
    reasoning = DEFAULT_REASONING.get(base, ()) if config.reasoning is None else config.reasoning
    config = config.model_copy(update={"reasoning": reasoning})
    chosen = prompts_of_split(prompts, config.split, config.max_prompts)
    problem_sets = tuple(_problem_set(spec, config) for spec in dict.fromkeys(reasoning))
    notes += (note for problems in problem_sets for note in problems.notes)
    harmful = [prompt for prompt in chosen if prompt.kind == "harmful"]
    attacks, attack_notes = _attacks(config, harmful)
    config = config.model_copy(update={"attacks": attacks})
    answers = _unsafe_answers(config, harmful)
    plan = EvaluationPlan(config, chosen, problem_sets, (*notes, *attack_notes), answers)
    if plan.base_config is not None:
        check_model(plan.base_config)
    if plan.attacker_config is not None:
        try:
            check_model(plan.attacker_config)
        except BackendError as error:
            raise BackendError(f"--attacker: {error}") from error
    if _is_checkpoint(Path(config.model)) and not os.access(config.model, os.W_OK):
        raise ConfigError(f"the scorecard goes into '{config.model}', which cannot be written; copy the checkpoint.")
    return plan


def _of_checkpoint(config: EvalConfig, base: str) -> tuple[EvalConfig, list[str]]:
    """Return the settings for a checkpoint, compared with what it was made from if nothing else is given, and notes."""
    path = Path(config.model) / TRAINING_FILE
    training = json.loads(path.read_text(encoding="utf-8"))  # a file that may be anyone's
    settings = training.get("settings")
    given = settings.get("quantize") if isinstance(settings, dict) else None
    trained_in: Quantize | None = next((known for known in get_args(Quantize) if known == given), None)
    if given and not trained_in and config.against is None:
        raise ConfigError(
            f"'{path}' says quantize {given!r:.60}, expected {' or '.join(map(repr, get_args(Quantize)))}, so how its "
            "base is rounded is not known; give --against MODEL, and --quantize-base if it was rounded."
        )
    notes = []
    if config.against is None:
        update = {"against": require_local_model(base, f"'{path}'", "--against")}
        config = config.model_copy(update=update | {"quantize_base": config.quantize_base or trained_in})
    elif trained_in and not config.quantize_base:
        notes.append(f"The checkpoint was trained in {trained_in}: what that rounding changed counts, too.")
    if training.get("weights_id", "") not in ("", fingerprint(path.parent)):
        notes.append(f"'{config.model}' is not as its training left it: weights or settings were changed since.")
    return config, notes


def _check_quantize(quantize: Quantize, config: EvalConfig) -> None:
    """Raise ConfigError where the base cannot be rounded."""
    if config.against is None:
        raise ConfigError(f"--quantize-base {quantize} is for the base, and there is none; give --against MODEL.")
    missing = [] if find_spec("bitsandbytes") else ["bitsandbytes (pip install 'flipsearch[quantize]')"]
    missing += [] if config.backend == "transformers" else ["--backend transformers"]
    if missing:
        raise ConfigError(
            f"the base '{config.against}' in {quantize} needs {' and '.join(missing)}; or compare with it as it is "
            f"stored: --against {config.against}."
        )


def _attacks(config: EvalConfig, harmful: Sequence[Prompt]) -> tuple[tuple[str, ...], list[str]]:
    """Return the attacks that can be made, and why others of "all" cannot; one that is named has to be possible."""
    names = attack_names(config.attacks)
    if names and not harmful:
        raise ConfigError("--attacks: there are no harmful prompts to attack; give some with --harmful.")
    remote = [model for model in (config.model, config.against) if model and not gives_tokens(config, model)]
    why = {
        "tokens": f"the tokens of a model, and '{remote[0]}' gives none" if remote else "",
        "attacker": "" if config.attacker else "a model that writes: --attacker MODEL",
    }
    impossible = {name: why[needs] for name in names if (needs := ATTACKS[name].needs) and why[needs]}
    if named := [name for name in impossible if name in config.attacks]:
        raise ConfigError(f"--attacks {named[0]} needs {impossible[named[0]]}.")
    names = tuple(name for name in names if name not in impossible)
    for flag, value, users in (
        ("--attacker", config.attacker, [name for name, attack in ATTACKS.items() if attack.needs == "attacker"]),
        ("--unsafe-answers", config.unsafe_answers, ["prefill"]),
    ):
        if value and not set(users) & set(names):
            raise ConfigError(f"{flag} is for --attacks {','.join(users)}; name one of them, or leave it out.")
    left_out = {reason: [name for name in impossible if impossible[name] == reason] for reason in impossible.values()}
    notes = [f"Attacks left out: {', '.join(those)}. Needed: {reason}." for reason, those in left_out.items()]
    if "pair" in names and not is_endpoint(config.attacker or ""):
        notes.append(
            f"pair: the attacker '{config.attacker}' reads answers and is in memory together with the model that it "
            "attacks; other attacks close it before a model is loaded."
        )
    return names, notes


def _unsafe_answers(config: EvalConfig, harmful: Sequence[Prompt]) -> dict[str, str]:
    """Return prompt id -> answer of the file that --unsafe-answers names; PromptError if it has none for a prompt."""
    if config.unsafe_answers is None:
        return {}
    try:
        table = read_table(config.unsafe_answers)
    except PromptError as error:
        raise PromptError(f"--unsafe-answers: {error}") from error
    columns = [table.find(names) for names in (TEXT_COLUMNS, ("target", *ANSWER_COLUMNS))]
    for what, column in zip(("prompts", "answers"), columns, strict=True):
        if column is None:
            raise PromptError(
                f"--unsafe-answers {table.path}: no column of {what} among {', '.join(table.columns)}; expected "
                "prompt and response."
            )
    answers = {" ".join(cell(row, columns[0]).split()): cell(row, columns[1]) for row in table.rows}
    known = {prompt.prompt_id: answers.get(" ".join(prompt.text.split()), "") for prompt in harmful}
    if not any(known.values()):
        raise PromptError(
            f"--unsafe-answers {table.path}: none of its {len(answers):,} prompts is among the {len(harmful):,} "
            "harmful ones that are evaluated; the texts must be the same."
        )
    return {id: answer for id, answer in known.items() if answer}


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
