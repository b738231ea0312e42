"""anatomy, plan_train, preflight and export: what a context does to a model, and what a training on it would take.

anatomy says where in its answers a context changes a model, before a training and after it; preflight, whether a
training is worth its start; export, its prompts for other trainers.
"""

from collections.abc import Sequence
from typing import Any

from flipsearch.config import ANATOMIES, TRAININGS, AnatomyConfig, ExportConfig, TrainConfig
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.core.progress import Progress
from flipsearch.core.settings import command_line, make_config
from flipsearch.core.trainings import PromptExport
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import prompts_of, prompts_of_split
from flipsearch.reporting.anatomy_page import write_anatomy, write_preflight
from flipsearch.reporting.files import read_study
from flipsearch.results import AnatomyResult, PreflightResult
from flipsearch.settings import Given, takes, with_card, with_one_context
from flipsearch.training.anatomy import AnatomyPlan, check_anatomy, run_anatomy
from flipsearch.training.cost import TrainingCost, training_cost
from flipsearch.training.export import plan_export, write_export
from flipsearch.training.plan import TrainPlan, plan_training
from flipsearch.training.preflight import ContextFigures, run_preflight
from flipsearch.workspace import Workspace, known_length_and_speed


@takes(AnatomyConfig)
def anatomy(given: Given[AnatomyConfig], *, progress: Progress | None = None) -> AnatomyResult:
    """Measure where in its answers a context changes a model, and what a training on it left of that.

    A card says which model and prompts it is for; what is given here wins. The same settings again generate nothing.
    Raises FlipsearchError in one line for anything that cannot be used.
    """
    plan = _anatomy_plan(given)
    judge = load_judge(plan.config.judge)
    folder = plan.config.reports / ANATOMIES
    place = folder / f"{plan.config.short_name}-{plan.identity[:6]}"
    with Workspace(folder, judge) as workspace:
        measured = run_anatomy(plan, judge, workspace.ledger, folder, progress)
    write_anatomy(measured, place)
    return AnatomyResult(measured, place)


def _anatomy_plan(given: Given[AnatomyConfig]) -> AnatomyPlan:
    config, context = with_one_context(given)
    check_anatomy(config)
    prompts = prompts_of(config)
    chosen = prompts_of_split(prompts, config.split, config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in chosen):
        raise PromptError(f"no harmful prompt of '{prompts.name}' in split {config.split}; see --split and --harmful.")
    return AnatomyPlan(config, context, chosen, prompts.notes_beside_groups)


@takes(TrainConfig)
def plan_train(
    given: Given[TrainConfig],
    *,
    tokens_per_second: float | None = None,
    measure: bool = False,
    gpus: int = 1,
    progress: Progress | None = None,
) -> TrainingCost:
    """Return what a training takes: steps, tokens, hours, memory per GPU; a model is loaded only to `measure`.

    `tokens_per_second` are completion tokens of whole steps, as the log of a training has them. How long answers are is
    taken from the ledger of the context's study, if there is one. Raises FlipsearchError in one line for anything that
    cannot be used.
    """
    if measure and tokens_per_second is not None:
        raise ConfigError("--tokens-per-second and --measure are two ways to know the speed; give one of them.")
    return _cost(plan_training(given.file, given.keywords), tokens_per_second, measure, gpus, progress)


@takes(TrainConfig)
def preflight(
    given: Given[TrainConfig],
    *,
    sample: int = 16,
    tokens_per_second: float | None = None,
    gpus: int = 1,
    progress: Progress | None = None,
) -> PreflightResult:
    """Say whether a training is worth its start, and write a page: go, think again, or no, and what would change it.

    What the study of a context knows is taken from there; else it is measured here, on `sample` prompts of each kind.
    The time is that of a few steps here, unless `tokens_per_second` is given. Raises FlipsearchError in one line for
    anything that cannot be used.
    """
    if sample < 1:
        raise ConfigError(f"--sample is {sample}, expected at least 1.")
    plan = plan_training(given.file, given.keywords)
    judge, known = load_judge(plan.config.judge), _known_figures(plan)
    measures = tokens_per_second is None
    folder = plan.config.reports / TRAININGS
    with Workspace(folder, judge) as workspace:
        measured = run_preflight(
            plan,
            judge,
            workspace.ledger,
            known,
            sample,
            lambda: _cost(plan, tokens_per_second, measures, gpus, progress),
            progress,
        )
    place = folder / f"preflight-{plan.config.checkpoint_name(plan.identity)}"
    chosen = make_config(TrainConfig, given.file, given.keywords)
    typed = {name: getattr(chosen, name) for name in TrainConfig.model_fields if name in chosen.model_fields_set}
    command = command_line("flipsearch train", TrainConfig, typed)
    write_preflight(measured, place, command)
    return PreflightResult(measured, place, command)


def _known_figures(plan: TrainPlan) -> ContextFigures | None:
    """Return what the study of the plan's first context measured, on unseen prompts if it did; None without a study."""
    for study in (read_study(page.parent) for page in plan.pages.values()):
        for trial in study.trials:
            if trial.context.context_id == plan.contexts[0].context_id:
                return ContextFigures(trial.final, trial.net, tuple(trial.late.depth), study.name)
    return None


def _cost(
    plan: TrainPlan, tokens_per_s: float | None, measures: bool, num_gpus: int, progress: Progress | None
) -> TrainingCost:
    lengths = [known_length_and_speed(page.parent)[0] for page in plan.pages.values()]
    length = next(filter(None, lengths), None)
    options: dict[str, Any] = {"mean_length": length, "num_gpus": num_gpus, "progress": progress}
    return training_cost(plan, tokens_per_s=tokens_per_s, measures=measures, **options)


@takes(ExportConfig)
def export(given: Given[ExportConfig], context: str | Sequence[str]) -> PromptExport:
    """Write the prompts that `train` takes, each with its context, as rows for a trainer whose teacher sees more.

    A card says which model and prompts it is for; what is given here wins. Nothing is generated: with `gate` or several
    contexts, the answers that decide have to be known from a study. Raises FlipsearchError in one line for anything
    that cannot be used.
    """
    names = [context] if isinstance(context, str) else list(context)
    plan = plan_export(with_card(given, names).config(), names)
    judge = load_judge(plan.config.judge) if plan.routes_by_answer else None
    check_identities(judge)
    return write_export(plan, judge)
