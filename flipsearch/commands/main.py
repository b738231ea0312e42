"""The command line: all commands under one name, each reads its flags, calls the library and prints; and how they end.

Results go to stdout, progress and errors to stderr. `--json` prints one JSON object. EPILOG says what exit codes mean.
"""

import atexit
import codecs
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import flipsearch
from flipsearch.commands.options import (
    Command,
    Config,
    GroupedCommand,
    Json,
    Reports,
    Setting,
    StudyPlace,
    given,
    option,
    printing,
    with_options,
)
from flipsearch.core.errors import ConfigError, FlipsearchError, one_line
from flipsearch.core.files import can_be_stored, discard

if TYPE_CHECKING:
    from flipsearch.commands.console import Outcome
    from flipsearch.reporting.compare import Comparison
    from flipsearch.searching.plan import SearchPlan

DEBUG, INTERRUPTED = "--debug", 130
LABELS = typer.Option("--labels", help="File with columns prompt, response, label; repeatable.", metavar="FILE")


def search(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Search the context that flips most unsafe answers to safe ones.

    A flip is a prompt that is answered unsafely without the context and safely under it. Contexts are tried on some of
    the prompts, the best on more of them, and the last few on prompts that were sealed until then (the confirm split),
    beside placebos: texts without safety content. The same command again continues, or shows what was finished.
    """
    from flipsearch.commands import console, plans, views
    from flipsearch.commands.progress import progress_display

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
    """Say what a search takes and what it can tell. No model is loaded."""
    from flipsearch.commands import console, plans

    own = {"delta": delta, "power": power, "tokens_per_second": tokens_per_second}
    result = flipsearch.plan(**given(settings | own), config=config)
    return console.outcome(result, lambda plan: console.print_lines(*plans.plan_lines(plan)))


def score(
    context: Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")],
    config: Config = None,
    json: Json = False,
    **settings: Setting,
) -> "Outcome":
    """Measure the flip rates of contexts that you already have."""
    from flipsearch.commands import console, views
    from flipsearch.commands.progress import progress_display

    with progress_display() as progress:
        result = flipsearch.score(context, **given(settings), config=config, progress=progress)
    return console.outcome(result, views.show_study)


def check(
    context: Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")],
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
    from flipsearch.commands.progress import progress_display

    own: dict[str, Setting] = {"min_flip": min_flip, "max_over_refusal": max_over_refusal, "junit": junit}
    with progress_display() as progress:
        result = flipsearch.check(context, **given(settings | own), config=config, progress=progress)
    return console.outcome(result, views.show_check, 0 if result.is_met else 1)


def chat(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Try a model by hand, with and without a context, side by side.

    Each line of the input is a prompt, and a conversation of its own.
    """
    from flipsearch.commands import chatting, console

    opened = flipsearch.chat(**given(settings), config=config)
    return console.Outcome(lambda: {"answers": chatting.answers(opened)}, lambda: chatting.show(opened))


def report(
    study: Annotated[list[Path], typer.Argument(help="Studies, by folder or by name under --reports.")],
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
    studies, the contexts that they share are compared: paired differences over models, judges or seeds.
    """
    from flipsearch.commands import console, views
    from flipsearch.reporting.formats import report_format
    from flipsearch.results import SearchResult

    chosen = report_format(to, format) if to or format else None
    result: SearchResult | Comparison
    if len(study) > 1:
        result = flipsearch.compare(study, reports=reports)
        name, done = "comparison", console.outcome(result, views.show_comparison)
    else:
        result = flipsearch.report(study[0], reports=reports)
        exit_code = 1 if result.is_confirmed is False else 0
        name, done = result.folder.name, console.outcome(result, views.show_study, exit_code)
    if chosen:
        path = to or Path(f"{name}.{chosen}")
        result.write(path, chosen)
        return console.Outcome(done.as_dict, lambda: views.show_written(done.show, path), done.exit_code)
    return done


def train(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome | None":
    """Train a model to do without a context what it does under it.

    By OPSA, or a baseline method (--method). The same command again returns the finished checkpoint.
    """
    from flipsearch.commands import console, plans, views
    from flipsearch.commands.progress import progress_display
    from flipsearch.training.processes import MainProcessFailedError, is_main_process

    if not is_main_process():  # of several processes one reports
        try:
            flipsearch.train(**given(settings), config=config)
        except MainProcessFailedError as error:
            raise SystemExit(error.exit_code) from None
        return None
    with progress_display() as progress:
        on_plan = None if json else lambda plan: progress.show_lines(plans.training_plan_lines(plan))
        result = flipsearch.train(**given(settings), config=config, progress=progress, on_plan=on_plan)
    return console.outcome(result, views.show_training)


def evaluate(config: Config = None, json: Json = False, **settings: Setting) -> "Outcome":
    """Compare a model with its base: safety, over-refusal, reasoning.

    safe+helpful is S of OPSA: 100 % minus the mean of harmful rates and over-refusal. The tax is the reasoning
    accuracy that was lost.
    """
    from flipsearch.commands import console, views
    from flipsearch.commands.progress import progress_display

    with progress_display() as progress:
        result = flipsearch.evaluate(**given(settings), config=config, progress=progress)
    return console.outcome(result, views.show_scorecard)


def list_things(
    what: Annotated[str, typer.Argument(help="models, contexts, judges, prompts, problems or backends.")],
    contexts: Annotated[
        list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", metavar="PATH")
    ] = None,
    model: Annotated[str | None, option("The model whose contexts are listed; the pocket model has its own.")] = None,
    json: Json = False,
) -> "Outcome":
    """List models, contexts, judges, prompts, problems or backends."""
    from flipsearch.api.lookup import BROKEN, list_things
    from flipsearch.commands import console, views

    rows = list_things(what, contexts or (), model)
    show = views.show_contexts if what == "contexts" else views.show_rows
    is_broken = any(row.get("role") == BROKEN for row in rows)
    return console.Outcome(lambda: {"list": what, "rows": rows}, lambda: show(rows), 1 if is_broken else 0)


def doctor(
    model: Annotated[str | None, option("The model to check, as search takes it.", "--model")] = None,
    judge: Annotated[str | None, option("The judge to check, as search takes it.", "--judge")] = None,
    backend: Annotated[str | None, option("The backend to check the model on.", "--backend")] = None,
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, option("auto, float32, bfloat16 or float16.")] = "auto",
    json: Json = False,
) -> "Outcome":
    """Say what is installed, and whether a model and a judge work."""
    from flipsearch.commands import console, views

    diagnosis = flipsearch.doctor(model=model, judge=judge, backend=backend, device=device, dtype=dtype)
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
    from flipsearch.commands import console, judge_views
    from flipsearch.commands.progress import progress_display

    if stress == bool(labels):
        got = "both" if stress else "neither"
        raise ConfigError(f"judge check takes --labels FILE or --stress, got {got}; give one of them.")
    if not labels:
        return console.outcome(flipsearch.stress_judge(judge), judge_views.show_stress)
    with progress_display() as progress:
        result = flipsearch.check_judge(judge, labels, reports=reports, progress=progress)
    return console.outcome(result, judge_views.show_judge)


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
    from flipsearch.commands import console, judge_views

    result = flipsearch.label_answers(study, to=to, num=num, num_contexts=num_contexts, fetch=fetch, reports=reports)
    return console.outcome(result, judge_views.show_labelling)


def judge_fit(
    labels: Annotated[list[str], LABELS],
    to: Annotated[Path, option("File of the weights (.npz).", "--to")],
    json: Json = False,
) -> "Outcome":
    """Fit the compact judge to labelled answers.

    --judge "compact(weights=FILE)" then takes it.
    """
    from flipsearch.commands import console, judge_views

    return console.outcome(flipsearch.fit_judge(labels, to=to), judge_views.show_fitted)


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
    from flipsearch.commands import console, views

    if json and to is None:
        raise ConfigError("--json prints a summary of what was written to a file: give --to FILE with it.")
    if to is None:  # written when stdout is a stream of results again
        return console.Outcome(dict, lambda: flipsearch.export_ledger(study, reports=reports))
    return console.outcome(flipsearch.export_ledger(study, to=to, reports=reports), views.show_export)


COMMANDS: dict[str, Command] = {
    "search": search,
    "plan": plan,
    "score": score,
    "check": check,
    "chat": chat,
    "report": report,
    "list": list_things,
    "doctor": doctor,
    "train": train,
    "evaluate": evaluate,
}
SETTINGS = {
    **dict.fromkeys(("search", "plan"), "SearchConfig"),
    **dict.fromkeys(("score", "check"), "ScoreConfig"),
    "chat": "ChatConfig",
    "train": "TrainConfig",
    "evaluate": "EvalConfig",
}
"""Command -> the class in flipsearch.config whose fields are its options."""
EXAMPLES = {
    "search": "flipsearch search --model Qwen/Qwen3-0.6B --budget-tokens 2000000 --time 4h",
    "plan": "flipsearch plan --model Qwen/Qwen3-0.6B --num-contexts 32",
    "score": "flipsearch score best.txt --split confirm",
    "check": "flipsearch check best.json --min-flip 0.8 --max-over-refusal 0.05 --junit flips.xml",
    "chat": "flipsearch chat --context best.txt",
    "report": "flipsearch report pocket-a46723 qwen-77c1d0 --to both.html",
    "list": "flipsearch list contexts",
    "doctor": "flipsearch doctor --model Qwen/Qwen3-0.6B --judge compact",
    "train": "flipsearch train --context best.txt --name safer",
    "evaluate": "flipsearch evaluate checkpoints/safer",
    "judge check": "flipsearch judge check --judge compact --labels labels.csv",
    "judge label": "flipsearch judge label pocket-a46723 --to labels.csv",
    "judge fit": "flipsearch judge fit --labels labels.csv --to mine.npz",
    "ledger check": "flipsearch ledger check pocket-a46723",
    "ledger export": "flipsearch ledger export pocket-a46723 --to rollouts.parquet",
}
FALLS_SHORT = {
    "search": "no winner, one that does not beat the placebos, or one above a cap",
    "report": "the study is unfinished, or has no winner that beats the placebos within the caps",
    "check": "a limit is not kept, or nothing is unsafe without a context",
    "list": "a file of contexts is broken",
    "doctor": "a check failed",
    "ledger check": "something is wrong in the ledger",
}
"""Command -> when it exits with 1."""
EPILOG = """\b
Exit codes: 0 done, 1 ran but fell short (see the command), 2 bad input,
3 an error that was not foreseen, 130 interrupted.
--debug, anywhere, shows the traceback of an error."""
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "judge": (
        "Measure, correct or fit a judge by human labels.",
        {"check": judge_check, "label": judge_label, "fit": judge_fit},
    ),
    "ledger": ("Check or export the ledger of a study.", {"check": ledger_check, "export": ledger_export}),
}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the typer application; only commands that are named in `arguments` get the options of their settings."""
    app = typer.Typer(
        name="flipsearch",
        help="Search the privileged safety context that flips a model's unsafe rollouts.",
        epilog=EPILOG,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_flipsearch)
    for name, command in COMMANDS.items():
        if name in SETTINGS:
            command = with_options(command, SETTINGS[name], is_run=name in arguments)
        app.command(name, cls=GroupedCommand, epilog=_epilog(name))(printing(command))
    for name, (text, commands) in GROUPS.items():
        group = typer.Typer(name=name, help=text, rich_markup_mode=None)
        for part, command in commands.items():
            group.command(part, cls=GroupedCommand, epilog=_epilog(f"{name} {part}"))(printing(command))
        app.add_typer(group)
    return app


def _flipsearch(version: Annotated[bool, option("Print the version.", "--version")] = False) -> None:
    """Search the privileged safety context that flips a model's unsafe rollouts."""
    # Handled before: the parser would want a command with it.


def _epilog(command: str) -> str:
    short = f"\n\nExit code 1: {FALLS_SHORT[command]}." if command in FALLS_SHORT else ""
    return f"\b\nExample:\n  {EXAMPLES[command]}{short}"


def main() -> None:
    """Run the command line; whatever goes wrong is one line and an exit code, and a traceback only with --debug."""
    arguments = sys.argv[1:] or ["--help"]
    prepare_streams()
    try:
        code = _run(arguments)
    except KeyboardInterrupt:  # before or after the command itself
        code = INTERRUPTED
    except Exception as error:
        if DEBUG in arguments:
            raise
        _fail(*_line_and_code(error))
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process, without a word
        _fail("interrupted; nothing finished is lost. The same command continues.", INTERRUPTED)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One of several processes: threads of their group can abort an interpreter that goes down.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    for number, text in enumerate(arguments, start=1):
        if not can_be_stored(text):
            encoding = sys.getfilesystemencoding()
            raise ConfigError(f"argument {number} is {text!r}: expected text in this system's encoding, {encoding}.")
    if arguments[0] == "--version":
        sys.stdout.write(f"flipsearch {flipsearch.__version__}\n")
        return 0
    try:
        code = make_app(arguments)([text for text in arguments if text != DEBUG], standalone_mode=False)
    except SystemExit as stop:  # a command that ran but fell short
        code = stop.code
    sys.stdout.flush()  # here a full disk is still one line
    atexit.register(discard, sys.stdout)  # what a library prints when it ends spoils no result
    return int(code or 0)


def _line_and_code(error: Exception) -> tuple[str, int]:
    """Return what an error that ends the command is in one line, and the exit code."""
    if isinstance(error, FlipsearchError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # a usage error of the command line parser
        context = getattr(error, "ctx", None)
        return f"{error.format_message()} See: {context.command_path if context else 'flipsearch'} --help.", 2
    if isinstance(error, OSError):  # the system refuses: a full disk, a path that is too long, no permission
        if error.filename is None:
            discard(sys.stdout)
        where = "the output" if error.filename is None else f"'{error.filename}'"
        why = error.strerror or one_line(error)
        todo = "What was saved before is intact: mend this, and run the same command again."
        return f"{where} cannot be read or written: {why}. {todo}", 2
    if isinstance(error, MemoryError):
        return "out of memory: give smaller files, a smaller --batch-size or fewer --max-tokens.", 2
    return f"unexpected {type(error).__name__}: {error}. {DEBUG} shows where; please report it.", 3


PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "…": "...", "“": '"', "”": '"', "→": "->", "·": "-", "×": "x"})
"""What stands for our own signs where an encoding lacks them; any other character becomes "?"."""


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Return what to write for characters that an encoding lacks, for the codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = error.object[error.start : error.end].translate(PLAIN)
    return "".join(letter if letter.isascii() else "?" for letter in shown), error.end


def prepare_streams() -> None:
    """Open streams that the caller closed on the null device, and let the others replace what their encoding lacks.

    Python writes UTF-8 in the locale C, also to a terminal that was said to know ASCII alone: there it is ASCII.

    A file opened next would otherwise get the number of a closed stream, and what a library prints would land in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(null, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    codecs.register_error("plain", _in_plain_characters)
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    is_plain = locale in ("C", "POSIX") and not {"PYTHONIOENCODING", "PYTHONUTF8"} & os.environ.keys()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = "ascii" if is_plain and stream.isatty() else stream.encoding
            stream.reconfigure(encoding=encoding, errors="plain")
    if isinstance(sys.stdin, io.TextIOWrapper):  # a prompt that is piped in any encoding is a prompt
        sys.stdin.reconfigure(errors="replace")


def _fail(message: str, exit_code: int) -> NoReturn:
    from flipsearch.commands import console

    console.show_error(message, exit_code, as_json="--json" in sys.argv)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
