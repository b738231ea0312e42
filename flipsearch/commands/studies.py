"""search, plan, score, report, list."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.options import Config, Json, Reports, Setting, given, option, takes_settings
from flipsearch.commands.streams import only_results_on_stdout


@takes_settings("SearchConfig")
def search(config: Config = None, json: Json = False, **settings: Setting) -> None:
    """Search the context that flips most unsafe rollouts. The same command again continues."""
    from flipsearch.api import studies
    from flipsearch.commands import console

    with console.bars() as progress:
        on_plan = None if json else progress.show_plan
        result = studies.search(**given(settings), config=config, progress=progress, on_plan=on_plan)
    console.print_result(result, json, console.show_study)
    raise SystemExit(0 if result.is_confirmed else 1)


@takes_settings("SearchConfig")
def plan(
    delta: Annotated[float | None, option("Difference of flip rates to detect (0.05).")] = None,
    power: Annotated[float | None, option("With this probability (0.8).")] = None,
    tokens_per_second: Annotated[
        float | None, option("Speed of the model, for the time it takes (that of this study so far).")
    ] = None,
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> None:
    """Say what a search takes and what its confirm split can tell; no model is loaded."""
    from flipsearch.api import studies
    from flipsearch.commands import console

    with only_results_on_stdout():
        own = {"delta": delta, "power": power, "tokens_per_second": tokens_per_second}
        result = studies.plan(**given(settings | own), config=config)
    console.print_result(result, json, console.show_plan)


@takes_settings("ScoreConfig")
def score(
    context: Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")],
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> None:
    """Measure the flip rates of contexts that you already have."""
    from flipsearch.api import studies
    from flipsearch.commands import console

    with console.bars() as progress:
        result = studies.score(context, **given(settings), config=config, progress=progress)
    console.print_result(result, json, console.show_study)


def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, or its name under --reports.")],
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Write the files of a finished study again."""
    from flipsearch.api import studies
    from flipsearch.commands import console

    result = studies.report(study, reports=reports)
    console.print_result(result, json, console.show_study)
    raise SystemExit(1 if result.is_confirmed is False else 0)
