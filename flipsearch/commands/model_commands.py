"""Commands on models and judges: chat, train, evaluate, export, list, doctor and judge; made like those on studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import flipsearch
from flipsearch.commands.options import Config, Contexts, Json, Reports, Setting, from_file, given, option
from flipsearch.core.errors import ConfigError, TrainingStoppedError

if TYPE_CHECKING:
    from flipsearch.api.sweep_plan import SweepPlan
    from flipsearch.commands.console import Outcome
    from flipsearch.training.plan import TrainPlan

LABELS = typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE")


def chat(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Try a model by hand, with and without a context, side by side.

    Each line of the input is a prompt, and a conversation of its own.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.console import progress_display

    with progress_display():
        chat = flipsearch.chat(**given(settings), config=config)

    def answers() -> dict[str, list[dict[str, str]]]:
        with chat:
            return {"answers": [chat.ask(prompt).as_dict() for prompt in model_views.typed_prompts()]}

    return console.Outcome(answers, lambda: model_views.show_chat(chat))


def train(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome | None":
    """Train a model to do without a context what it does under it.

    By OPSA, or a baseline method (--method). The same command again returns the finished checkpoint.
    """
    from flipsearch.commands import console, model_views, plans
    from flipsearch.commands.console import progress_display
    from flipsearch.training.processes import MainProcessFailedError, is_main_process

    if not is_main_process():  # of several processes one reports
        try:
            flipsearch.train(**given(settings), config=config)
        except (MainProcessFailedError, TrainingStoppedError) as error:
            raise SystemExit(error.exit_code) from None
        return None
    with progress_display() as progress:
        said: list[str] = []

        def on_plan(plan: "TrainPlan") -> None:
            said.extend(plan.notes)
            progress.show_lines([] if json else plans.training_plan_lines(plan))

        result = flipsearch.train(**given(settings), config=config, progress=progress, on_plan=on_plan)
    return console.outcome(result, lambda result: model_views.show_training(result, said))


def plan_train(
    tokens_per_second: Annotated[
        float | None, option("Completion tokens per second of whole steps, rollouts included, for the time it takes.")
    ] = None,
    measure: Annotated[bool, option("Load the model and time a few steps here, in a folder that is removed.")] = False,
    gpus: Annotated[int | None, option("GPUs that share the steps; weights are sharded by FSDP (1).")] = None,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Show what a training takes: steps, tokens, hours, memory.

    Nothing is loaded but the tokenizer, unless the speed is measured.
    """
    from flipsearch.commands import console, plans
    from flipsearch.commands.console import progress_display

    own: dict[str, Setting] = {"tokens_per_second": tokens_per_second, "measure": measure, "gpus": gpus}
    with progress_display() as progress:
        result = flipsearch.plan_train(**given(settings | own), config=config, progress=progress)
    return console.outcome(result, lambda cost: console.print_lines(*plans.training_cost_lines(cost)))


def preflight(
    sample: Annotated[int | None, option("Prompts of each kind that are answered here (16).")] = None,
    tokens_per_second: Annotated[
        float | None, option("Completion tokens per second of whole steps (those of a few steps here).")
    ] = None,
    gpus: Annotated[int | None, option("GPUs that share the steps; weights are sharded by FSDP (1).")] = None,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Say whether a training is worth its start: go or no-go.

    What a context flips, how deep and at what cost, leakage, and what the training takes; with what would change it.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.console import progress_display

    own: dict[str, Setting] = {"sample": sample, "tokens_per_second": tokens_per_second, "gpus": gpus}
    with progress_display() as progress:
        result = flipsearch.preflight(**given(settings | own), config=config, progress=progress)
    return console.outcome(result, model_views.show_preflight, 0 if result.preflight.verdict == "go" else 1)


def evaluate(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Compare a model with its base: safety, refusals, reasoning.

    safe+helpful is S of OPSA: 100 % minus the mean of harmful rates and over-refusal. The tax is the reasoning
    accuracy that was lost.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.console import progress_display

    with progress_display() as progress:
        result = flipsearch.evaluate(**given(settings), config=config, progress=progress)
    return console.outcome(result, model_views.show_scorecard)


def anatomy(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Show at which tokens a context changes a model.

    The model writes without the context; behind what it wrote, its next-token distributions with and without the
    context are compared, token by token.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.console import progress_display

    with progress_display() as progress:
        result = flipsearch.anatomy(**given(settings), config=config, progress=progress)
    return console.outcome(result, model_views.show_anatomy)


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
    from flipsearch.commands import console, model_views, plans
    from flipsearch.commands.console import progress_display

    with progress_display() as progress:
        said: list[str] = []
        shown = console.Outcome(dict, lambda: None)

        def on_plan(planned: "SweepPlan") -> None:
            nonlocal shown
            said.extend(planned.notes)
            lines, facts = plans.sweep_plan_lines(planned), planned.as_dict()  # while its folder is there
            shown = console.Outcome(lambda: facts, lambda: console.print_lines(*lines))
            progress.show_lines([] if json or plan else lines)

        result = flipsearch.sweep(
            **given(settings),
            config=config,
            progress=progress,
            on_plan=on_plan,
            on_part=progress.begin_part,
            plan_only=plan,
        )
    if result is None:
        return shown
    is_whole = len(result.sweep.runs) == result.sweep.num_planned
    return console.outcome(result, lambda result: model_views.show_sweep(result, said), 0 if is_whole else 1)


def export(context: Contexts, config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Write the training prompts and contexts for TRL or others.

    For trainers whose teacher reads more than their student: TRL, ms-swift, or any that reads JSON lines. The prompts
    are those of `flipsearch train`. Nothing is generated.
    """
    from flipsearch.commands import console, model_views
    from flipsearch.commands.console import progress_display

    with progress_display():
        result = flipsearch.export(context, **given(settings), config=config)
    return console.outcome(result, model_views.show_export)


def list_available(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems, backends or attacks.")],
    contexts: Annotated[
        list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", metavar="PATH")
    ] = None,
    model: Annotated[str | None, option("The model whose contexts are listed; the pocket model has its own.")] = None,
    config: Config = None,
    json: Json = False,
) -> "Outcome":
    """List models, contexts, judges, prompts, attacks and more."""
    from flipsearch.api.lookup import list_available
    from flipsearch.commands import console, views
    from flipsearch.templating.library import BROKEN

    if config is not None and what != "contexts":
        raise ConfigError(f"--config goes with `list contexts`, not with `list {what}`.")
    settings = from_file(config, "contexts", "model") | given({"contexts": contexts, "model": model})
    rows = list_available(what, **settings)
    show = views.show_contexts if what == "contexts" else views.show_rows
    is_broken = any(row.get("role") == BROKEN for row in rows)
    return console.Outcome(lambda: {"list": what, "rows": rows}, lambda: show(rows), 1 if is_broken else 0)


def doctor(
    model: Annotated[str | None, option("The model to check, as search takes it.", "--model")] = None,
    judge: Annotated[str | None, option("The judge to check, as search takes it.", "--judge")] = None,
    backend: Annotated[str | None, option("The backend to check the model on.", "--backend")] = None,
    device: Annotated[str | None, option("auto, cpu, cuda or cuda:N (auto).")] = None,
    dtype: Annotated[str | None, option("auto, float32, bfloat16 or float16 (auto).")] = None,
    config: Config = None,
    json: Json = False,
) -> "Outcome":
    """Say what is installed, and whether a model and a judge work."""
    from flipsearch.commands import console, views
    from flipsearch.commands.console import progress_display

    typed = given({"model": model, "judge": judge, "backend": backend, "device": device, "dtype": dtype})
    with progress_display():
        diagnosis = flipsearch.doctor(**from_file(config, "model", "judge", "backend", "device", "dtype") | typed)
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
    from flipsearch.commands.console import progress_display

    if stress == bool(labels):
        got = "both" if stress else "neither"
        raise ConfigError(f"judge check takes --labels FILE or --stress, got {got}; give one of them.")
    with progress_display() as progress:
        if not labels:
            return console.outcome(flipsearch.stress_judge(judge), model_views.show_stress)
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
    from flipsearch.commands.console import progress_display

    with progress_display():
        result = flipsearch.fit_judge(labels, to=to)
    return console.outcome(result, model_views.show_fitted)
