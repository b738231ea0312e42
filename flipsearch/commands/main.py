"""The command line: the table of commands, how one is run, and how it ends.

Results go to stdout, progress and errors to stderr. `--json` prints one JSON object. EPILOG says what exit codes mean.
"""

import atexit
import codecs
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import flipsearch
from flipsearch.commands import model_commands, study_commands
from flipsearch.commands.options import Command, GroupedCommand, option, printing, with_options
from flipsearch.core.errors import ConfigError, FlipsearchError, one_line
from flipsearch.core.files import can_be_stored, discard

DEBUG, INTERRUPTED = "--debug", 130
COMMANDS: dict[str, Command] = {
    "search": study_commands.search,
    "plan": study_commands.plan,
    "score": study_commands.score,
    "check": study_commands.check,
    "chat": model_commands.chat,
    "report": study_commands.report,
    "list": model_commands.list_available,
    "doctor": model_commands.doctor,
    "train": model_commands.train,
    "plan train": model_commands.plan_train,
    "preflight": model_commands.preflight,
    "evaluate": model_commands.evaluate,
    "anatomy": model_commands.anatomy,
    "sweep": model_commands.sweep,
    "export": model_commands.export,
}
SETTINGS = {
    **dict.fromkeys(("search", "plan"), "SearchConfig"),
    **dict.fromkeys(("score", "check"), "ScoreConfig"),
    "chat": "ChatConfig",
    **dict.fromkeys(("train", "plan train", "preflight"), "TrainConfig"),
    "evaluate": "EvalConfig",
    "anatomy": "AnatomyConfig",
    "sweep": "SweepConfig",
    "export": "ExportConfig",
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
    "plan train": "flipsearch plan train --context best.txt --preset paper --measure",
    "preflight": "flipsearch preflight --context best.txt --preset paper",
    "evaluate": "flipsearch evaluate checkpoints/safer",
    "anatomy": "flipsearch anatomy --context best.txt --student checkpoints/safer",
    "sweep": "flipsearch sweep --study pocket-a46723 --seeds 3",
    "export": "flipsearch export best.txt --placement before --format trl --to rows.jsonl",
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
    "preflight": "think again, or no",
    "list": "a file of contexts is broken",
    "doctor": "a check failed",
    "sweep": "a training could not be made",
    "ledger check": "something is wrong in the ledger",
}
"""Command -> when it exits with 1."""
EPILOG = """\b
Exit codes: 0 done, 1 ran but fell short (see the command), 2 bad input,
3 an error that was not foreseen, 130 interrupted,
75 training saved by SIGTERM or SIGUSR1 (run again).
--debug, anywhere, shows the traceback of an error."""
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "judge": (
        "Measure, correct or fit a judge by human labels.",
        {"check": model_commands.judge_check, "label": model_commands.judge_label, "fit": model_commands.judge_fit},
    ),
    "ledger": (
        "Check or export the ledger of a study.",
        {"check": study_commands.ledger_check, "export": study_commands.ledger_export},
    ),
}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the typer application; only commands that are named in `arguments` get the options of their settings."""
    app = typer.Typer(
        name="flipsearch",
        help="Find the privileged safety context that flips a model's unsafe rollouts.",
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
    """Find the privileged safety context that flips a model's unsafe rollouts."""
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
    arguments = [text for text in arguments if text != DEBUG]
    if arguments[:2] == ["plan", "train"]:  # one command, whose name has a blank: `plan` alone plans a search
        arguments = ["plan train", *arguments[2:]]
    try:
        code = make_app(arguments)(arguments, standalone_mode=False)
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
        message = error.format_message().rstrip(".")
        return f"{message}. See: {context.command_path if context else 'flipsearch'} --help.", 2
    if isinstance(error, OSError):  # the system refuses: a full disk, a path that is too long, no permission
        if error.filename is None:
            discard(sys.stdout)
        where = "the output" if error.filename is None else f"'{error.filename}'"
        why = error.strerror or one_line(error)
        todo = "What was saved before is intact: fix this, and run the same command again."
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
