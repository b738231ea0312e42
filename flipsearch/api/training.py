"""train and evaluate: a checkpoint that behaves as under the context, and how it compares with its base."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from flipsearch.api.scores import name_checkpoint, renew_pages
from flipsearch.backends.models import TRAINING_FILE
from flipsearch.config import TRAININGS, EvalConfig, TrainConfig
from flipsearch.core.progress import Progress, announce
from flipsearch.core.trainings import LoggedAnswer
from flipsearch.evaluation.plan import plan_evaluation
from flipsearch.evaluation.run import run_evaluation
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import prompts_of
from flipsearch.reporting.files import (
    read_training,
    write_model_card,
    write_scorecard,
    write_training,
    write_training_page,
)
from flipsearch.results import EvaluationResult, TrainingResult
from flipsearch.settings import Given, takes
from flipsearch.training.checkpoint import ANSWERS_FILE, LOG_FILE, CheckpointFolder, upload
from flipsearch.training.log import judge_logged, read_answers, read_log, write_answers
from flipsearch.training.plan import TrainPlan, plan_training
from flipsearch.training.processes import StopSignals, is_main_process
from flipsearch.training.run import run_training
from flipsearch.workspace import Workspace


@takes(TrainConfig)
def train(
    given: Given[TrainConfig], *, progress: Progress | None = None, on_plan: Callable[[TrainPlan], None] | None = None
) -> TrainingResult:
    """Train a model towards what it does under a context, and write the checkpoint.

    The same settings again return the finished training. A context card (best.json, or the one beside best.txt) says
    which model and prompts it is for; what is given here wins. `on_plan` is called with the plan before a model is
    loaded. SIGTERM and SIGUSR1 save the state after the step that runs and raise TrainingStoppedError. Raises
    FlipsearchError in one line for anything that cannot be used.
    """
    with StopSignals() as stop:
        plan = plan_training(given.file, given.keywords)
        if finished := _finished(plan):
            return _uploaded(finished, plan)
        judge, folder = load_judge(plan.config.judge), CheckpointFolder(plan.folder)
        if is_main_process():
            folder.check(plan.config.resume)
        if plan.needs_judge:
            check_identities(judge)
        if on_plan:
            on_plan(plan)
        needs_ledger = plan.needs_judge and is_main_process()
        place = Workspace(plan.config.reports / TRAININGS, judge) if needs_ledger else nullcontext()
        with place as workspace, folder:
            run, log = run_training(plan, judge, workspace.ledger if workspace else None, folder, progress, stop)
            answers: Sequence[LoggedAnswer] = ()
            if is_main_process():
                announce("judging the logged answers, and writing the checkpoint")
                answers = judge_logged(read_answers(folder.final / ANSWERS_FILE), judge)
                write_answers(answers, folder.final / ANSWERS_FILE)
                write_training(run, log, folder.final, answers, seen_from=folder.folder)
                folder.publish()
                name_checkpoint(run, folder.folder)
    return _uploaded(TrainingResult(run, log, folder.folder, answers), plan)


def _uploaded(result: TrainingResult, plan: TrainPlan) -> TrainingResult:
    """Return a finished training, uploaded and with a note on it if that is wanted."""
    if plan.config.push_to_hub is None or not is_main_process():
        return result
    note = f"The checkpoint was uploaded to {upload(result.folder, plan.config.push_to_hub)}."
    return replace(result, run=replace(result.run, notes=(*result.run.notes, note)))


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
    announce("writing the scorecard")
    write_scorecard(card, plan.path, changes, training)
    if training:
        write_model_card(training, card, folder)
        if log := read_log(folder / LOG_FILE):  # else the page that is there knows more
            write_training_page(training, log, folder, read_answers(folder / ANSWERS_FILE), card=card)
        renew_pages(training, folder)
    return EvaluationResult(card, plan.path)
