"""judge check, judge label, judge fit."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.console import print_outcome
from flipsearch.commands.options import Json, Reports, option

app = typer.Typer(name="judge", help="Measure, correct or fit a judge by people's labels.", rich_markup_mode=None)

Labels = Annotated[
    list[str],
    typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE"),
]


@app.command()
def check(
    labels: Labels,
    judge: Annotated[str, option("The judge, as search takes it.", "--judge")],
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Measure how a judge agrees with people, and keep it for the reports of its studies."""
    from flipsearch.api import judges as api
    from flipsearch.commands import console

    with console.bars() as progress:
        found = api.check_judge(judge, labels, reports=reports, progress=progress)
    print_outcome(found, json, console.show_judge)


@app.command()
def label(
    study: Annotated[str, typer.Argument(help="A finished study's name or folder.", metavar="STUDY")],
    to: Annotated[Path, option("File to write (.csv).", "--to")],
    num: Annotated[int, option("Prompts to draw, on average (50).")] = 50,
    num_contexts: Annotated[int, option("Best contexts whose answers are written beside the one without (1).")] = 1,
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Write the answers of a study that people should label; judge check reads them back."""
    from flipsearch.api import judges as api
    from flipsearch.commands import console

    done = api.label_answers(study, to=to, num=num, num_contexts=num_contexts, reports=reports)
    print_outcome(done, json, console.show_labelling)


@app.command()
def fit(
    labels: Labels,
    to: Annotated[Path, option("File of the weights (.npz).", "--to")],
    json: Json = False,
) -> None:
    """Fit the compact judge to labelled answers; --judge "compact(weights=FILE)" takes it."""
    from flipsearch.api import judges as api
    from flipsearch.commands import console

    print_outcome(api.fit_judge(labels, to=to), json, console.show_fitted)
