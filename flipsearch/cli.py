"""The command line: every command reads its flags, calls the library and prints.

Results go to stdout, progress and errors to stderr. `--json` prints one JSON object. Exit codes: 0 done, 1 ran but
fell short (nothing to flip, nothing beats the placebo), 2 bad input, 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flipsearch.errors import FlipsearchError

app = typer.Typer(
    name="flipsearch",
    help="Search the privileged safety context that flips a model's unsafe rollouts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
MODEL, DATA, SEARCH, OUT = "Model", "Prompts and judge", "Search", "Output"


def option(help: str, panel: str, *names: str, **more: Any) -> Any:
    """Return a typer option; None means: not given, so that the settings' own default holds."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Model = Annotated[str | None, option("organism (the default), a local folder, or a hub id org/name[@revision].", MODEL)]
Backend = Annotated[str | None, option("transformers (the default), vllm, or scripted.", MODEL)]
Thinking = Annotated[str | None, option("The chat template's thinking switch: auto, on or off.", MODEL)]
Device = Annotated[str | None, option("auto, cpu, cuda or cuda:N.", MODEL)]
Dtype = Annotated[str | None, option("auto, float32, bfloat16 or float16.", MODEL)]
BatchSize = Annotated[int | None, option("Rows a batch; halved by itself where memory is short.", MODEL)]
MaxTokens = Annotated[int | None, option("Most completion tokens (organism 160, others 1,024).", MODEL)]
Temperature = Annotated[float | None, option("0 (the default) is greedy decoding.", MODEL)]
TopP = Annotated[float | None, option("Nucleus mass, with --temperature.", MODEL)]
TopK = Annotated[int | None, option("Most likely tokens kept, with --temperature; 0 keeps all.", MODEL)]
Prompts = Annotated[str | None, option("A built-in set (organism, starter) or a file with labels.", DATA)]
Harmful = Annotated[list[str] | None, option("File of harmful prompts, PATH[:column]; repeatable.", DATA)]
Benign = Annotated[list[str] | None, option("File of benign prompts, PATH[:column]; repeatable.", DATA)]
Judge = Annotated[str | None, option("Name of a judge (refusal is the default) or a judge file.", DATA)]
Contexts = Annotated[list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", SEARCH)]
Templates = Annotated[list[str] | None, option("Search this template only; repeatable.", SEARCH, "--template")]
Placements = Annotated[list[str] | None, option("Search this placement only; repeatable.", SEARCH, "--placement")]
Seed = Annotated[int | None, option("Seed of the search and of sampling (0).", SEARCH)]
Reports = Annotated[Path | None, option("Folder of the studies (reports).", OUT)]
StudyName = Annotated[str | None, option("Name of the study's folder; derived from the settings if not given.", OUT)]
Config = Annotated[Path | None, option("TOML file of settings; flags win over it.", OUT)]
Json = Annotated[bool, option("Print one JSON object on stdout.", OUT, "--json")]


@app.command()
def search(
    model: Model = None,
    backend: Backend = None,
    thinking: Thinking = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    contexts: Contexts = None,
    templates: Templates = None,
    placements: Placements = None,
    num_contexts: Annotated[int | None, option("Different contexts to propose (64).", SEARCH)] = None,
    cohort_size: Annotated[int | None, option("Contexts raced together (16).", SEARCH)] = None,
    max_over_refusal: Annotated[float | None, option("Cap on refused benign prompts (0.10).", SEARCH)] = None,
    first_rung: Annotated[int | None, option("Harmful prompts of the first rung (16).", SEARCH)] = None,
    num_finalists: Annotated[int | None, option("Contexts measured on the confirm split (5).", SEARCH)] = None,
    max_prompts: Annotated[int | None, option("Most prompts a split and kind (all).", SEARCH)] = None,
    seed: Seed = None,
    study: StudyName = None,
    reports: Reports = None,
    best: Annotated[Path | None, option("Where the winning text is copied to (best.txt).", OUT)] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Search the context that flips most unsafe rollouts. The same command again continues."""
    _study_command("search", {}, locals())


@app.command()
def score(
    context: Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")],
    placement: Annotated[str | None, option("Where the texts go: system, before, after or around.", SEARCH)] = None,
    split: Annotated[str | None, option("Score on one split: search, confirm, training, evaluation.", DATA)] = None,
    model: Model = None,
    backend: Backend = None,
    thinking: Thinking = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    contexts: Contexts = None,
    max_prompts: Annotated[int | None, option("Most prompts a kind (all).", DATA)] = None,
    seed: Seed = None,
    study: StudyName = None,
    reports: Reports = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Measure the flip rates of contexts that you already have."""
    _study_command("score", {"context": context}, locals())


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, or its name under --reports.")],
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Write a finished study's leaderboard again, without generating or judging."""
    from flipsearch import api

    _show(api.report(study, reports=reports), json)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts or backends.")],
    contexts: Contexts = None,
    json: Json = False,
) -> None:
    """List what a name can mean: models, contexts, judges, prompts, backends."""
    from flipsearch import api, console

    rows = api.list_things(what, contexts or ())
    if json:
        console.print_json({"list": what, "rows": rows})
    else:
        console.show_rows(rows)


def _study_command(name: str, given: dict[str, Any], flags: dict[str, Any]) -> None:
    from flipsearch import api, console

    json, config = flags.pop("json"), flags.pop("config")
    flags = {k: v for k, v in flags.items() if v is not None and k not in given}
    with console.bars() as progress:
        outcome = getattr(api, name)(**given, **flags, config=config, progress=progress)
    _show(outcome, json)


def _show(outcome: Any, json: bool) -> None:
    from flipsearch import console

    if json:
        console.print_json(outcome.as_dict())
    else:
        console.show_study(outcome.study, outcome.folder, outcome.best_path)
    if not outcome.beats_placebo:
        raise SystemExit(1)


def main() -> None:
    """Run the command line; an error made on purpose is one line and an exit code, never a traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except FlipsearchError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; nothing finished is lost. The same command continues.", 130)


def _fail(message: str, exit_code: int) -> None:
    from flipsearch import console

    console.show_error(message, exit_code, as_json="--json" in sys.argv)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
