"""Commands on models and judges: chat, train, evaluate, export, list, doctor and judge; made like those on studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import flipsearch
from flipsearch.commands.options import Config, Contexts, Json, Reports, Setting, given, option
from flipsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from flipsearch.commands.console import Outcome

LABELS = typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE")


def chat(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Try a model by hand, with and without a context, side by side.

    Each line of the input is a prompt, and a conversation of its own.
    """
    from flipsearch.commands import console, model_views

    chat = flipsearch.chat(**given(settings), config=config)

    def answers() -> dict[str, list[dict[str, str]]]:
        with chat:
            return {"answers": [chat.ask(prompt).as_dict() for prompt in model_views.typed_prompts()]}

    return console.Outcome(answers, lambda: model_views.show_chat(chat))


def train(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome | None":
    """Train a model to do without a context what it does under it.

    By OPSA, or a baseline method (--method). The same command again returns the finished checkpoint.
    """
    from flipsearch.commands import console, plans, views
    from flipsearch.commands.progress import progress_display
    from flipsearch.training.processes import MainProcessFailedError, is_main_process

    if not is_main_process():  # of several processes one reports
        try:
            flipsearch.train(**given(settings), config=config)
        except MainProcessFailedError as error:
            raise SystemExit(error.exit_code) from None
        return None
    with progress_display() as progress:
        on_plan = None if json else lambda plan: progress.show_lines(plans.training_plan_lines(plan))
        result = flipsearch.train(**given(settings), config=config, progress=progress, on_plan=on_plan)
    return console.outcome(result, views.show_training)


def evaluate(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Compare a model with its base: safety, over-refusal, reasoning.

    safe+helpful is S of OPSA: 100 % minus the mean of harmful rates and over-refusal. The tax is the reasoning
    accuracy that was lost.
    """
    from flipsearch.commands import console, views
    from flipsearch.commands.progress import progress_display

    with progress_display() as progress:
        result = flipsearch.evaluate(**given(settings), config=config, progress=progress)
    return console.outcome(result, views.show_scorecard)


def anatomy(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Show at which tokens a context changes a model.

    The model writes without the context; behind what it wrote, its next-token distributions with and without the
    context are compared, token by token.
    """
    from flipsearch.commands import console, views
    from flipsearch.commands.progress import progress_display

    with progress_display() as progress:
        result = flipsearch.anatomy(**given(settings), config=config, progress=progress)
    return console.outcome(result, views.show_anatomy)


def sweep(
    config: Config = None,
    plan: Annotated[bool, option("Print the plan, and train nothing.", "--plan")] = False,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Train under several contexts: does flip rate predict harm?

    A grid of trainings, contexts by --methods by --data-sizes by --seeds, on the same prompts with as many steps; each
    is evaluated on prompts that it never saw. The same command continues.
    """
    from flipsearch.commands import console, plans, views
    from flipsearch.commands.progress import progress_display

    with progress_display() as progress:
        result = flipsearch.sweep(
            **given(settings),
            config=config,
            progress=progress,
            on_plan=None if json else lambda planned: progress.show_lines(plans.sweep_plan_lines(planned)),
            on_part=progress.begin_part,
            plan_only=plan,
        )
    if result is None:
        return console.Outcome(dict, lambda: None)
    is_whole = len(result.sweep.runs) == result.sweep.num_planned
    return console.outcome(result, views.show_sweep, 0 if is_whole else 1)


def export(context: Contexts, config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Write the training prompts and contexts for TRL or others.

    For trainers whose teacher reads more than their student: TRL, ms-swift, or any that reads JSON lines. The prompts
    are those of `flipsearch train`. Nothing is generated.
    """
    from flipsearch.commands import console, views

    return console.outcome(flipsearch.export(context, **given(settings), config=config), views.show_export)


def list_available(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems or backends.")],
    contexts: Annotated[
        list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", metavar="PATH")
    ] = None,
    model: Annotated[str | None, option("The model whose contexts are listed; the pocket model has its own.")] = None,
    json: Json = False,
) -> "Outcome":
    """List models, contexts, judges, prompts, problems or backends."""
    from flipsearch.api.lookup import list_available
    from flipsearch.commands import console, views
    from flipsearch.templating.library import BROKEN

    rows = list_available(what, contexts or (), model)
    show = views.show_contexts if what == "contexts" else views.show_rows
    is_broken = any(row.get("role") == BROKEN for row in rows)
    return console.Outcome(lambda: {"list": what, "rows": rows}, lambda: show(rows), 1 if is_broken else 0)


def doctor(
    model: Annotated[str | None, option("The model to check, as search takes it.", "--model")] = None,
    judge: Annotated[str | None, option("The judge to check, as search takes it.", "--judge")] = None,
    backend: Annotated[str | None, option("The backend to check the model on.", "--backend")] = None,
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, option("auto, float32, bfloat16 or float16.")] = "auto",
    json: Json = False,
) -> "Outcome":
    """Say what is installed, and whether a model and a judge work."""
    from flipsearch.commands import console, views

    diagnosis = flipsearch.doctor(model=model, judge=judge, backend=backend, device=device, dtype=dtype)
    return console.outcome(diagnosis, views.show_diagnosis, 0 if diagnosis.is_healthy else 1)


def judge_check(
    judge: Annotated[str, option("The judge, as search takes it.", "--judge")],
    labels: Annotated[list[str] | None, LABELS] = None,
    stress: Annotated[
        bool, option("Show it made-up answers that are hard by their form; no labels.", "--stress")
    ] = False,
    reports: Reports = None,
    json: Json = False,
) -> "Outcome":
    """Measure how a judge agrees with human labels.

    What is measured is kept for the reports of its studies. --stress needs no labels.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.progress import progress_display

    if stress == bool(labels):
        got = "both" if stress else "neither"
        raise ConfigError(f"judge check takes --labels FILE or --stress, got {got}; give one of them.")
    if not labels:
        return console.outcome(flipsearch.stress_judge(judge), model_views.show_stress)
    with progress_display() as progress:
        result = flipsearch.check_judge(judge, labels, reports=reports, progress=progress)
    return console.outcome(result, model_views.show_judge)


def judge_label(
    study: Annotated[str, typer.Argument(help="A finished study's name or folder.", metavar="STUDY")],
    to: Annotated[Path, option("File to write (.csv).", "--to")],
    num: Annotated[int, option("Prompts to sample, on average (50).")] = 50,
    num_contexts: Annotated[int, option("Best contexts whose answers are written beside the one without (1).")] = 1,
    fetch: Annotated[bool, option("Fetch prompts from where the study's settings say.", "--fetch")] = False,
    reports: Reports = None,
    json: Json = False,
) -> "Outcome":
    """Write the answers of a study that people should label.

    judge check reads the labels back.
    """
    from flipsearch.commands import console, model_views

    result = flipsearch.label_answers(study, to=to, num=num, num_contexts=num_contexts, fetch=fetch, reports=reports)
    return console.outcome(result, model_views.show_labelling)


def judge_fit(
    labels: Annotated[list[str], LABELS],
    to: Annotated[Path, option("File of the weights (.npz).", "--to")],
    json: Json = False,
) -> "Outcome":
    """Fit the compact judge to labelled answers.

    --judge "compact(weights=FILE)" then takes it.
    """
    from flipsearch.commands import console, model_views

    return console.outcome(flipsearch.fit_judge(labels, to=to), model_views.show_fitted)
