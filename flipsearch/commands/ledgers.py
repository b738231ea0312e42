"""ledger check, ledger export."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.printing import print_outcome
from flipsearch.errors import ConfigError
from flipsearch.flags import Json, Reports, StudyPlace, option

app = typer.Typer(name="ledger", help="Check or export the ledger of a study.", rich_markup_mode=None)


@app.command()
def check(study: StudyPlace, reports: Reports = None, json: Json = False) -> None:
    """Read all of a ledger and say what it holds; exit 1 if something is wrong in it."""
    from flipsearch import api, console

    found = api.check_ledger(study, reports=reports)
    print_outcome(found, json, console.show_ledger)
    raise SystemExit(0 if found.is_sound else 1)


@app.command()
def export(
    study: StudyPlace,
    to: Annotated[Path | None, option("File that ends in .jsonl, .csv or .parquet (JSON lines on stdout).")] = None,
    reports: Reports = None,
    json: Annotated[bool, option("Print a summary as one JSON object on stdout; with --to.", "--json")] = False,
) -> None:
    """Write every rollout with its verdicts, a row each."""
    from flipsearch import api, console

    if json and to is None:
        raise ConfigError("--json prints a summary of what was written to a file: give --to FILE with it.")
    done = api.export_ledger(study, to=to, reports=reports)
    if to:
        print_outcome(done, json, console.show_export)
