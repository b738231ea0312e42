"""search, plan, score, report, list."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flipsearch.commands.console import print_outcome, show_outcome
from flipsearch.commands.options import (
    Backend,
    BatchSize,
    Benign,
    Config,
    Contexts,
    Device,
    Dtype,
    Harmful,
    Json,
    Judge,
    MaxTokens,
    Model,
    Placements,
    Prompts,
    Reports,
    Samples,
    SecondJudges,
    Seed,
    StudyName,
    Temperature,
    Templates,
    Thinking,
    TopK,
    TopP,
    UnsafeAt,
    option,
    with_flags_of,
)

app = typer.Typer(rich_markup_mode=None)


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
    samples: Samples = None,
    unsafe_at: UnsafeAt = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    confirm_judge: Annotated[
        str | None, option("Another judge, which decides on the confirm split (the same).", metavar="JUDGE")
    ] = None,
    second_judges: SecondJudges = None,
    contexts: Contexts = None,
    templates: Templates = None,
    placements: Placements = None,
    num_contexts: Annotated[int | None, option("Contexts to propose (64).", "--num-contexts", "--trials")] = None,
    budget_tokens: Annotated[int | None, option("Stop near so many completion tokens, cached ones counted.")] = None,
    time_s: Annotated[str | None, option("Stop near this time.", "--time", metavar="SECONDS|90s|15m|2h")] = None,
    rewriter: Annotated[
        str | None, option("Let this model rewrite contexts; self is the searched one (none).", metavar="MODEL")
    ] = None,
    cohort_size: Annotated[int | None, option("Contexts raced together (16).")] = None,
    max_over_refusal: Annotated[float | None, option("Cap on refused benign prompts (0.10).")] = None,
    breed: Annotated[float | None, option("Share of the contexts bred by operators (0.5); 0 is none.")] = None,
    screen: Annotated[int | None, option("Contexts screened for each one raced (4); 1 is no screen.")] = None,
    alpha: Annotated[float | None, option("Chance at most that the race cuts the best context (0.10).")] = None,
    tolerance: Annotated[
        float | None, option("Hold contexts back while none is likely to be better by more (0.02).")
    ] = None,
    first_rung: Annotated[int | None, option("Harmful prompts of the first rung (16).")] = None,
    num_finalists: Annotated[int | None, option("Contexts measured on the confirm split (5).")] = None,
    depths: Annotated[
        list[int] | None,
        option("Measure finalists after so many unsafe tokens, too (8, 32, 128); 0: not.", "--depth", metavar="TOKENS"),
    ] = None,
    benign_context: Annotated[
        bool | None, option("Choose no context for benign prompts.", " /--no-benign-context")
    ] = None,
    max_prompts: Annotated[int | None, option("Most prompts a split and kind (all).")] = None,
    seed: Seed = None,
    study: StudyName = None,
    reports: Reports = None,
    best: Annotated[Path | None, option("Where the winning text is copied to (best.txt).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Search the context that flips most unsafe rollouts. The same command again continues."""
    _study_command("search", {}, locals())


@app.command()
@with_flags_of(search)
def plan(
    delta: Annotated[float | None, option("Difference of flip rates to be found (0.05).")] = None,
    power: Annotated[float | None, option("With this probability (0.8).")] = None,
    **flags: Any,
) -> None:
    """Say what a search would take and what its confirm split can tell; no model is loaded."""
    from flipsearch.api import studies as api
    from flipsearch.commands import console

    json = flags.pop("json")
    told = api.plan(**{k: v for k, v in {"delta": delta, "power": power, **flags}.items() if v is not None})
    print_outcome(told, json, console.show_plan)


@app.command()
def score(
    context: Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")],
    placement: Annotated[str | None, option("Where the texts go: system, before, after or around.")] = None,
    split: Annotated[str | None, option("Score on one split: search, confirm, training, evaluation.")] = None,
    model: Model = None,
    backend: Backend = None,
    thinking: Thinking = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    samples: Samples = None,
    unsafe_at: UnsafeAt = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    second_judges: SecondJudges = None,
    contexts: Contexts = None,
    max_prompts: Annotated[int | None, option("Most prompts a kind (all).")] = None,
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
    """Write the files of a finished study again."""
    from flipsearch.api import studies as api

    show_outcome(api.report(study, reports=reports), json)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems or backends.")],
    contexts: Contexts = None,
    json: Json = False,
) -> None:
    """List models, contexts, judges, prompts, problems or backends."""
    from flipsearch.api import listing as api
    from flipsearch.commands import console

    rows = api.list_things(what, contexts or ())
    if json:
        console.print_json({"list": what, "rows": rows})
    else:
        console.show_rows(rows)


def _study_command(name: str, given: dict[str, Any], flags: dict[str, Any]) -> None:
    from flipsearch.api import studies as api
    from flipsearch.commands import console

    json, config = flags.pop("json"), flags.pop("config")
    flags = {k: v for k, v in flags.items() if v is not None and k not in given}
    with console.bars() as progress:
        if name == "search" and not json:
            flags["on_plan"] = progress.show_plan
        outcome = getattr(api, name)(**given, **flags, config=config, progress=progress)
    show_outcome(outcome, json)
    raise SystemExit(1 if outcome.beats_placebo is False else 0)
