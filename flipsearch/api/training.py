"""train, evaluate and export: a checkpoint that behaves as under the context, how it compares, and its prompts."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from flipsearch.api.settings import Given, takes, with_card
from flipsearch.backends.models import TRAINING_FILE
from flipsearch.config import TRAININGS, EvalConfig, ExportConfig, TrainConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.progress import Progress
from flipsearch.core.trainings import LoggedAnswer, PromptExport
from flipsearch.evaluation.plan import plan_evaluation
from flipsearch.evaluation.run import run_evaluation
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import prompts_of
from flipsearch.reporting.files import (
    read_study,
    read_training,
    write_model_card,
    write_scorecard,
    write_training,
    write_training_page,
)
from flipsearch.reporting.preflight_page import write_preflight
from flipsearch.results import EvaluationResult, PreflightResult, TrainingResult
from flipsearch.training.checkpoint import ANSWERS_FILE, LOG_FILE, CheckpointFolder
from flipsearch.training.cost import TrainingCost, training_cost
from flipsearch.training.export import plan_export, write_export
from flipsearch.training.log import judge_logged, read_answers, read_log, write_answers
from flipsearch.training.plan import TrainPlan, plan_training
from flipsearch.training.preflight import ContextFigures, run_preflight
from flipsearch.training.processes import is_main_process
from flipsearch.training.run import run_training
from flipsearch.workspace import Workspace, known_length_and_speed


@takes(TrainConfig)
def train(
    given: Given[TrainConfig], *, progress: Progress | None = None, on_plan: Callable[[TrainPlan], None] | None = None
) -> TrainingResult:
    """Train a model towards what it does under a context, and write the checkpoint.

    The same settings again return the finished training. A context card (best.json, or the one beside best.txt) says
    which model and prompts it is for; what is given here wins. `on_plan` is called with the plan before a model is
    loaded. Raises FlipsearchError in one line for anything that cannot be used.
    """
    plan = plan_training(given.file, given.keywords)
    if finished := _finished(plan):
        return finished
    judge, folder = load_judge(plan.config.judge), CheckpointFolder(plan.folder)
    if is_main_process():
        folder.check(plan.config.resume)
    if plan.needs_judge:
        check_identities(judge)
    if on_plan:
        on_plan(plan)
    needs_ledger = plan.needs_judge and is_main_process()
    with Workspace(plan.config.reports / TRAININGS, judge) if needs_ledger else nullcontext() as workspace, folder:
        run, log = run_training(plan, judge, workspace.ledger if workspace else None, folder, progress)
        answers: Sequence[LoggedAnswer] = ()
        if is_main_process():
            answers = judge_logged(read_answers(folder.final / ANSWERS_FILE), judge)
            write_answers(answers, folder.final / ANSWERS_FILE)
            write_training(run, log, folder.final, answers, seen_from=folder.folder)
            folder.publish()
    return TrainingResult(run, log, folder.folder, answers)


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
    check_identities(judge)
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
    write_preflight(measured, place)
    return PreflightResult(measured, place)


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


def _finished(plan: TrainPlan) -> TrainingResult | None:
    """Return the training of a plan if its checkpoint is there already, with a note; None if it is not."""
    if not (plan.folder / TRAINING_FILE).is_file():
        return None
    run, log = read_training(plan.folder), read_log(plan.folder / LOG_FILE)
    if run.inputs_id != plan.inputs_id or not log:
        return None
    note = f"'{plan.folder}' was finished before, with the same settings: nothing was trained again."
    answers = read_answers(plan.folder / ANSWERS_FILE)
    return TrainingResult(replace(run, notes=(*run.notes, note)), log, plan.folder, answers)


@takes(EvalConfig)
def evaluate(given: Given[EvalConfig], *, progress: Progress | None = None) -> EvaluationResult:
    """Measure a model and the one it was made from on the same prompts and problems, and write the scorecard.

    `model` is evaluated, `against` is its base. The same settings again continue
    or, once finished, generate nothing. Raises FlipsearchError in one line for anything that cannot be used.
    """
    config = given.config()
    plan = plan_evaluation(config, prompts_of(config))
    judge = load_judge(config.judge)
    is_checkpoint = (plan.path.parent / TRAINING_FILE).is_file()
    training = read_training(plan.path.parent) if is_checkpoint else None
    with Workspace(plan.folder, judge) as workspace:
        card, changes = run_evaluation(plan, judge, workspace.ledger, progress)
    folder = plan.path.parent
    write_scorecard(card, plan.path, changes, training)
    if training:
        write_model_card(training, card, folder)
        if log := read_log(folder / LOG_FILE):  # else the page that is there knows more
            write_training_page(training, log, folder, read_answers(folder / ANSWERS_FILE), card=card)
    return EvaluationResult(card, plan.path)


@takes(ExportConfig)
def export(given: Given[ExportConfig], context: str | Sequence[str]) -> PromptExport:
    """Write the prompts that `train` takes, each with its context, as rows for a trainer whose teacher reads more.

    A card says which model and prompts it is for; what is given here wins. Nothing is generated: with `gate` or several
    contexts, the answers that decide have to be known from a study. Raises FlipsearchError in one line for anything
    that cannot be used.
    """
    names = [context] if isinstance(context, str) else list(context)
    plan = plan_export(with_card(given, names).config(), names)
    judge = load_judge(plan.config.judge) if plan.routes_by_answer else None
    check_identities(judge)
    return write_export(plan, judge)
