"""The command line: every command reads its flags, calls the library and prints.

Results go to stdout, progress and errors to stderr. `--json` prints one JSON object. Exit codes: 0 done, 1 ran but
fell short (nothing to flip, nothing beats the placebo), 2 bad input, 3 an error that we did not foresee, 130
interrupted. `--debug`, anywhere, shows the traceback of an error.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flipsearch.errors import ConfigError, FlipsearchError
from flipsearch.flags import (
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

DEBUG, INTERRUPTED = "--debug", 130
app = typer.Typer(
    name="flipsearch",
    help="Search the privileged safety context that flips a model's unsafe rollouts.",
    epilog="--debug, anywhere, shows the traceback of an error.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ledgers = typer.Typer(name="ledger", help="Check or export the ledger of a study.", rich_markup_mode=None)
app.add_typer(ledgers)


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
    from flipsearch import api, console

    json = flags.pop("json")
    told = api.plan(**{k: v for k, v in {"delta": delta, "power": power, **flags}.items() if v is not None})
    _print(told, json, console.show_plan)


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
def train(
    context: Annotated[
        list[str] | None,
        option("best.txt, a card, a text or a template; with several, each prompt goes to the first that flips it."),
    ] = None,
    benign_context: Annotated[str | None, option("Context for benign prompts (none).")] = None,
    method: Annotated[str | None, option("opsa (the default), sft-self or sft-teacher.")] = None,
    teacher: Annotated[str | None, option("Whose answers sft-teacher learns.", metavar="MODEL")] = None,
    control: Annotated[
        str | None, option("Put this in the context's place: empty, neutral or shuffled.", "--context-control")
    ] = None,
    gate: Annotated[
        bool | None, option("Leave out harmful prompts that the context does not make safe.", "--gate")
    ] = None,
    name: Annotated[str | None, option("Name of the checkpoint; derived from the settings if not given.")] = None,
    checkpoints: Annotated[Path | None, option("Folder of the checkpoints (checkpoints).")] = None,
    resume: Annotated[bool | None, option("Go on from the last state that was saved.", "--resume")] = None,
    epochs: Annotated[float | None, option("Passes over the prompts (3; organism 6).")] = None,
    max_steps: Annotated[int | None, option("Optimizer steps, instead of --epochs.")] = None,
    learning_rate: Annotated[float | None, option("Of AdamW (1e-5; organism 3e-4).")] = None,
    train_batch_size: Annotated[int | None, option("Prompts a step (64; organism 32).")] = None,
    micro_batch_size: Annotated[int | None, option("Rows a backward pass; changes memory and rounding alone.")] = None,
    warmup_share: Annotated[float | None, option("Share of the steps (0.1); a cosine follows.")] = None,
    weight_decay: Annotated[float | None, option("Of AdamW (0).")] = None,
    max_grad_norm: Annotated[float | None, option("Clip of the gradient norm (1); 0 clips nothing.")] = None,
    forward_weight: Annotated[float | None, option("Of KL(teacher || student) (0.5).")] = None,
    reverse_weight: Annotated[float | None, option("Of KL(student || teacher) (0.5).")] = None,
    jensen_shannon_weight: Annotated[float | None, option("Of the Jensen-Shannon divergence (0).")] = None,
    support: Annotated[int | None, option("Compare on the teacher's so many likeliest tokens (0: on all).")] = None,
    tail: Annotated[str | None, option("With --support: renormalised (the default) or bucket.")] = None,
    clip: Annotated[float | None, option("Most that a token's divergence counts (no clip).")] = None,
    horizon: Annotated[int | None, option("Only a completion's first so many tokens count (all; organism 40).")] = None,
    lora: Annotated[int | None, option("Train LoRA adapters of this rank (0: all weights).", metavar="RANK")] = None,
    gradient_checkpointing: Annotated[
        bool | None, option("Less memory, more time.", "--gradient-checkpointing")
    ] = None,
    save_steps: Annotated[int | None, option("Save the state every so many steps (five times; 0 never).")] = None,
    report_to: Annotated[list[str] | None, option("tensorboard, wandb, …; repeatable.", metavar="NAME")] = None,
    split: Annotated[str | None, option("Prompts: search, confirm, training, all (all but evaluation).")] = None,
    model: Model = None,
    thinking: Thinking = None,
    device: Annotated[str | None, option("auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, option("auto, float32 or bfloat16 (weights trained in float32 all the same).")] = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, option("Of the rollouts (0.6).")] = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    contexts: Contexts = None,
    max_prompts: Annotated[int | None, option("Most prompts a kind (all).")] = None,
    seed: Seed = None,
    reports: Reports = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a model towards what it does under a context, without the context: OPSA, or a rival."""
    flags = {k: v for k, v in locals().items() if v is not None and k not in ("json", "config")}
    from flipsearch import api, console
    from flipsearch.training.processes import FirstFailedError, is_first

    if not is_first():  # of several processes one speaks
        try:
            api.train(**flags, config=config)
        except FirstFailedError as error:
            raise SystemExit(error.exit_code) from None
        return
    with console.bars() as progress:
        done = api.train(**flags, config=config, progress=progress)
    _print(done, json, lambda done: console.show_training(done.run, done.log, done.folder))


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="What is evaluated: a checkpoint, another folder, or a hub id.", metavar="MODEL")
    ],
    against: Annotated[
        str | None, option("The base (what the checkpoint was made from).", "--against", metavar="MODEL")
    ] = None,
    split: Annotated[str | None, option("Prompts to ask: evaluation (the default), another split, or all.")] = None,
    reasoning: Annotated[
        list[str] | None,
        option("Problems: arithmetic, or a file (question, answer); repeatable.", metavar="NAME|PATH"),
    ] = None,
    samples: Annotated[int | None, option("Answers a problem, with --temperature (1).")] = None,
    max_problems: Annotated[int | None, option("Most problems a set (all).")] = None,
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
    max_prompts: Annotated[int | None, option("Most prompts a set and kind (all).")] = None,
    seed: Seed = None,
    reports: Reports = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Hold a model against its base: safety, over-refusal, reasoning, composite S, tax."""
    flags = {k: v for k, v in locals().items() if v is not None and k not in ("json", "config")}
    from flipsearch import api, console
    from flipsearch.reporting.scorecard import scorecard_remarks, scorecard_text

    with console.bars() as progress:
        done = api.evaluate(**flags, config=config, progress=progress)
    card = done.scorecard
    _print(done, json, lambda _: console.show_scorecard(scorecard_text(card), scorecard_remarks(card), done.path))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, or its name under --reports.")],
    reports: Reports = None,
    json: Json = False,
) -> None:
    """Write the files of a finished study again."""
    from flipsearch import api

    _show(api.report(study, reports=reports), json)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems or backends.")],
    contexts: Contexts = None,
    json: Json = False,
) -> None:
    """List models, contexts, judges, prompts, problems or backends."""
    from flipsearch import api, console

    rows = api.list_things(what, contexts or ())
    if json:
        console.print_json({"list": what, "rows": rows})
    else:
        console.show_rows(rows)


StudyPlace = Annotated[str, typer.Argument(help="A study's name or folder, or a ledger file.", metavar="STUDY")]


@ledgers.command()
def check(study: StudyPlace, reports: Reports = None, json: Json = False) -> None:
    """Read all of a ledger and say what it holds; exit 1 if something is wrong in it."""
    from flipsearch import api, console

    found = api.check_ledger(study, reports=reports)
    _print(found, json, console.show_ledger)
    raise SystemExit(0 if found.is_sound else 1)


@ledgers.command()
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
        _print(done, json, console.show_export)


def _study_command(name: str, given: dict[str, Any], flags: dict[str, Any]) -> None:
    from flipsearch import api, console

    json, config = flags.pop("json"), flags.pop("config")
    flags = {k: v for k, v in flags.items() if v is not None and k not in given}
    with console.bars() as progress:
        if name == "search" and not json:
            flags["announce"] = progress.show_plan
        outcome = getattr(api, name)(**given, **flags, config=config, progress=progress)
    _show(outcome, json)
    raise SystemExit(1 if outcome.beats_placebo is False else 0)


def _show(outcome: Any, json: bool) -> None:
    from flipsearch import console

    _print(outcome, json, lambda done: console.show_study(done.study, done.folder, done.best_path))


def _print(outcome: Any, json: bool, show: Callable[[Any], None]) -> None:
    from flipsearch import console

    if json:
        console.print_json(outcome.as_dict())
    else:
        show(outcome)


def main() -> None:
    """Run the command line; whatever goes wrong is one line and an exit code, and a traceback only with --debug."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app([argument for argument in arguments if argument != DEBUG], standalone_mode=False)
    except FlipsearchError as error:
        if DEBUG in arguments:
            raise
        _fail(str(error), error.exit_code)
    except Exception as error:
        if DEBUG in arguments:
            raise
        if hasattr(error, "format_message"):  # a usage error of the command line parser
            _fail(f"{error.format_message()} See: flipsearch --help.", 2)
        _fail(f"unexpected {type(error).__name__}: {error}. {DEBUG} shows where; please report it.", 3)
    if code == INTERRUPTED:
        _fail("interrupted; nothing finished is lost. The same command continues.", INTERRUPTED)
    raise SystemExit(code or 0)


def _fail(message: str, exit_code: int) -> NoReturn:
    from flipsearch import console

    console.show_error(message, exit_code, as_json="--json" in sys.argv)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
