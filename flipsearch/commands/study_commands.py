"""Commands on studies: search, plan, score, check, report and ledger; each reads its flags and calls the library."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import flipsearch
from flipsearch.commands.options import Config, Contexts, Json, Reports, Setting, StudyPlace, given, option
from flipsearch.core.errors import ConfigError

if TYPE_CHECKING:
    from flipsearch.commands.console import Outcome
    from flipsearch.reporting.compare import Comparison
    from flipsearch.reporting.scorecard_page import ScorecardComparison
    from flipsearch.searching.plan import SearchPlan


def search(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Find the context that flips the most unsafe answers.

    A flip is a prompt that is answered unsafely without the context and safely under it. Contexts are tried on some of
    the prompts, the best on more of them, and the last few on prompts that were sealed until then (the confirm split),
    beside placebos: texts without safety content. The same command again continues, or shows what was finished.
    """
    from flipsearch.commands import console, plans, views
    from flipsearch.commands.console import progress_display

    with progress_display() as progress:

        def on_plan(plan: "SearchPlan") -> None:
            progress.show_plan(plan, [] if json else plans.plan_lines(plan))

        result = flipsearch.search(**given(settings), config=config, progress=progress, on_plan=on_plan)
    return console.outcome(result, views.show_study, 0 if result.is_confirmed else 1)


def plan(
    delta: Annotated[float | None, option("Difference of flip rates to detect (0.05).")] = None,
    power: Annotated[float | None, option("With this probability (0.8).")] = None,
    tokens_per_second: Annotated[
        float | None, option("Speed of the model, for the time it takes (that of this study so far).")
    ] = None,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Show what a search costs and which differences it can detect. No model is loaded."""
    from flipsearch.commands import console, plans
    from flipsearch.commands.console import progress_display

    own = {"delta": delta, "power": power, "tokens_per_second": tokens_per_second}
    with progress_display():
        result = flipsearch.plan(**given(settings | own), config=config)
    return console.outcome(result, lambda plan: console.print_lines(*plans.plan_lines(plan)))


def score(
    context: Contexts,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Measure the flip rates of contexts that you already have."""
    from flipsearch.commands import console, views
    from flipsearch.commands.console import progress_display

    with progress_display() as progress:
        result = flipsearch.score(context, **given(settings), config=config, progress=progress)
    return console.outcome(result, views.show_study)


def check(
    context: Contexts,
    min_flip: Annotated[float | None, option("Least flip rate, as a fraction (no limit).")] = None,
    max_over_refusal: Annotated[
        float | None,
        option("Highest share of benign prompts refused beyond those refused without a context (no limit)."),
    ] = None,
    junit: Annotated[Path | None, option("Write the outcome to this file too, as JUnit XML.")] = None,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Fail unless contexts are good enough, for CI.

    They are measured as score does it. A card says which model and prompts it is for.
    """
    from flipsearch.commands import console, views
    from flipsearch.commands.console import progress_display

    own: dict[str, Setting] = {"min_flip": min_flip, "max_over_refusal": max_over_refusal, "junit": junit}
    with progress_display() as progress:
        result = flipsearch.check(context, **given(settings | own), config=config, progress=progress)
    return console.outcome(result, views.show_check, 0 if result.is_met else 1)


def report(
    study: Annotated[list[Path], typer.Argument(help="Studies, by folder or by name under --reports; or checkpoints.")],
    to: Annotated[
        Path | None,
        option("Write a report to this file: .html, .csv, .json, .md, .parquet or .png.", metavar="FILE"),
    ] = None,
    format: Annotated[
        str | None,
        option("Its format, whatever its ending is; without --to it is STUDY.FORMAT or comparison.FORMAT here."),
    ] = None,
    reports: Reports = None,
    json: Json = False,
) -> "Outcome":
    """Show a study and write its files, or compare several.

    A study that was stopped is reported as far as it came; one that still runs is only read, and shown. Of several
    studies, the contexts that they share are compared: paired differences over models, judges or seeds. A checkpoint
    that was evaluated is shown with its scorecard, several beside each other and their base.
    """
    from flipsearch.backends.models import TRAINING_FILE
    from flipsearch.commands import console, model_views, views
    from flipsearch.evaluation.plan import SCORECARD_FILE
    from flipsearch.reporting.formats import report_format
    from flipsearch.results import EvaluationResult, SearchResult

    chosen = report_format(to, format) if to or format else None
    result: SearchResult | EvaluationResult | Comparison | ScorecardComparison
    files = (SCORECARD_FILE, TRAINING_FILE)
    if checkpoints := [folder for folder in study if any((folder / name).is_file() for name in files)]:
        if others := [folder for folder in study if folder not in checkpoints]:
            what = "a study or something else" if Path(others[0]).exists() else "no such folder"
            raise ConfigError(f"'{checkpoints[0]}' is a checkpoint, and '{others[0]}' is {what}; give one kind.")
        if len(study) > 1:
            result = flipsearch.compare_checkpoints(study)
            name, done = "checkpoints", console.outcome(result, model_views.show_checkpoints)
        else:
            result = flipsearch.report_checkpoint(study[0])
            name, done = study[0].resolve().name, console.outcome(result, model_views.show_scorecard)
    elif len(study) > 1:
        result = flipsearch.compare(study, reports=reports)
        name, done = "comparison", console.outcome(result, views.show_comparison)
    else:
        result = flipsearch.report(study[0], reports=reports)
        exit_code = 1 if result.is_confirmed is False else 0
        name, done = result.folder.name, console.outcome(result, views.show_study, exit_code)
    if chosen:
        path = to or Path(f"{name}.{chosen}")
        result.write(path, chosen)

        def show() -> None:
            done.show()
            console.print_lines(f"{'written to':<14}{path}")

        return console.Outcome(done.as_dict, show, done.exit_code)
    return done


def ledger_check(study: StudyPlace, reports: Reports = None, json: Json = False) -> "Outcome":
    """Read all of a ledger and say what it holds; exit 1 if something is wrong in it."""
    from flipsearch.commands import console, views

    result = flipsearch.check_ledger(study, reports=reports)
    return console.outcome(result, views.show_ledger, 0 if result.is_sound else 1)


def ledger_export(
    study: StudyPlace,
    to: Annotated[Path | None, option("File that ends in .jsonl, .csv or .parquet (JSON lines on stdout).")] = None,
    reports: Reports = None,
    json: Annotated[bool, option("Print a summary as one JSON object on stdout; with --to.", "--json")] = False,
) -> "Outcome":
    """Write every rollout with its verdicts, one row each."""
    from flipsearch.commands import console

    if json and to is None:
        raise ConfigError("--json prints a summary of what was written to a file: give --to FILE with it.")
    if to is None:  # written when stdout is a stream of results again
        return console.Outcome(dict, lambda: flipsearch.export_ledger(study, reports=reports))
    return console.outcome(
        flipsearch.export_ledger(study, to=to, reports=reports),
        lambda done: console.print_lines(f"{done.num_rollouts:,} rollouts  {done.path}"),
    )
