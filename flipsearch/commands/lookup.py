"""list, doctor, ledger check, ledger export."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.options import Json, Reports, StudyPlace, option
from flipsearch.core.errors import ConfigError


def list_things(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems or backends.")],
    contexts: Annotated[
        list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", metavar="PATH")
    ] = None,
    model: Annotated[str | None, option("The model whose contexts are listed; the pocket model has its own.")] = None,
    json: Json = False,
) -> None:
    """List models, contexts, judges, prompts, problems or backends."""
    from flipsearch.api import lookup
    from flipsearch.commands import console, context_list

    rows = lookup.list_things(what, contexts or (), model)
    if json:
        console.print_json({"list": what, "rows": rows})
    elif what == "contexts":
        context_list.show_contexts(rows)
    else:
        console.show_rows(rows)


def doctor(
    model: Annotated[str | None, option("The model to check, as search takes it.", "--model")] = None,
    judge: Annotated[str | None, option("The judge to check, as search takes it.", "--judge")] = None,
    backend: Annotated[str | None, option("The backend to check the model on.", "--backend")] = None,
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, option("auto, float32, bfloat16 or float16.")] = "auto",
    json: Json = False,
) -> None:
    """Say what is installed, what runs here, and whether a model and a judge work; exit 1 if a check fails."""
    from flipsearch.api.doctor import doctor
    from flipsearch.commands import console

    diagnosis = doctor(model=model, judge=judge, backend=backend, device=device, dtype=dtype)
    console.print_result(diagnosis, json, console.show_diagnosis)
    raise SystemExit(0 if diagnosis.is_healthy else 1)


def check(study: StudyPlace, reports: Reports = None, json: Json = False) -> None:
    """Read all of a ledger and say what it holds; exit 1 if something is wrong in it."""
    from flipsearch.api import lookup
    from flipsearch.commands import console

    result = lookup.check_ledger(study, reports=reports)
    console.print_result(result, json, console.show_ledger)
    raise SystemExit(0 if result.is_sound else 1)


def export(
    study: StudyPlace,
    to: Annotated[Path | None, option("File that ends in .jsonl, .csv or .parquet (JSON lines on stdout).")] = None,
    reports: Reports = None,
    json: Annotated[bool, option("Print a summary as one JSON object on stdout; with --to.", "--json")] = False,
) -> None:
    """Write every rollout with its verdicts, one row each."""
    from flipsearch.api import lookup
    from flipsearch.commands import console

    if json and to is None:
        raise ConfigError("--json prints a summary of what was written to a file: give --to FILE with it.")
    result = lookup.export_ledger(study, to=to, reports=reports)
    if to:
        console.print_result(result, json, console.show_export)
