"""judge check, judge label, judge fit."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.options import Json, Reports, option

Labels = Annotated[
    list[str],
    typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE"),
]


def check(
    judge: Annotated[str, option("The judge, as search takes it.", "--judge")],
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE"),
    ] = None,
    stress: Annotated[
        bool, option("Show it made-up answers that are hard by their form; no labels.", "--stress")
    ] = False,
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Measure how a judge agrees with human labels, and keep it for the reports of its studies; or --stress it."""
    from flipsearch.api import judges
    from flipsearch.commands import console
    from flipsearch.core.errors import ConfigError

    if stress == bool(labels):
        got = "both" if stress else "neither"
        raise ConfigError(f"judge check takes --labels FILE or --stress, got {got}; give one of them.")
    if not labels:
        console.print_result(judges.stress_judge(judge), json, console.show_stress)
        return
    with console.bars() as progress:
        result = judges.check_judge(judge, labels, reports=reports, progress=progress)
    console.print_result(result, json, console.show_judge)


def label(
    study: Annotated[str, typer.Argument(help="A finished study's name or folder.", metavar="STUDY")],
    to: Annotated[Path, option("File to write (.csv).", "--to")],
    num: Annotated[int, option("Prompts to sample, on average (50).")] = 50,
    num_contexts: Annotated[int, option("Best contexts whose answers are written beside the one without (1).")] = 1,
    fetch: Annotated[bool, option("Fetch prompts from where the study's settings say.", "--fetch")] = False,
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Write the answers of a study that annotators should label; judge check reads them back."""
    from flipsearch.api import judges
    from flipsearch.commands import console

    result = judges.label_answers(study, to=to, num=num, num_contexts=num_contexts, fetch=fetch, reports=reports)
    console.print_result(result, json, console.show_labelling)


def fit(labels: Labels, to: Annotated[Path, option("File of the weights (.npz).", "--to")], json: Json = False) -> None:
    """Fit the compact judge to labelled answers; --judge "compact(weights=FILE)" takes it."""
    from flipsearch.api import judges
    from flipsearch.commands import console

    console.print_result(judges.fit_judge(labels, to=to), json, console.show_fitted)
