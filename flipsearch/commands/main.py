"""The command line: all commands under one name, and how they end.

Results go to stdout, progress and errors to stderr. `--json` prints one JSON object. Exit codes: 0 done, 1 ran but
fell short (nothing to flip, nothing beats the placebo), 2 bad input, 3 an error that was not foreseen, 130
interrupted. `--debug`, anywhere, shows the traceback of an error.
"""

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from flipsearch.commands import judges, lookup, studies, training
from flipsearch.commands.options import Command, with_options
from flipsearch.commands.streams import discard_stdout, prepare_streams
from flipsearch.core.errors import ConfigError, FlipsearchError, one_line
from flipsearch.core.files import can_be_stored

DEBUG, INTERRUPTED = "--debug", 130
COMMANDS: dict[str, Command] = {
    "search": studies.search,
    "plan": studies.plan,
    "score": studies.score,
    "report": studies.report,
    "list": lookup.list_things,
    "doctor": lookup.doctor,
    "train": training.train,
    "evaluate": training.evaluate,
}
GROUPS: dict[str, tuple[str, tuple[Command, ...]]] = {
    "judge": ("Measure, correct or fit a judge by human labels.", (judges.check, judges.label, judges.fit)),
    "ledger": ("Check or export the ledger of a study.", (lookup.check, lookup.export)),
}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the typer application; only commands that are named in `arguments` get the options of their settings."""
    app = typer.Typer(
        name="flipsearch",
        help="Search the privileged safety context that flips a model's unsafe rollouts.",
        epilog="--debug, anywhere, shows the traceback of an error.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for name, command in COMMANDS.items():
        app.command(name)(with_options(command, is_run=name in arguments))
    for name, (text, commands) in GROUPS.items():
        group = typer.Typer(name=name, help=text, rich_markup_mode=None)
        for command in commands:
            group.command()(command)
        app.add_typer(group)
    return app


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
    try:
        code = make_app(arguments)([text for text in arguments if text != DEBUG], standalone_mode=False)
    except SystemExit as stop:  # a command that ran but fell short
        code = stop.code
    sys.stdout.flush()  # here a full disk is still one line
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
            discard_stdout()
        where = "the output" if error.filename is None else f"'{error.filename}'"
        why = error.strerror or one_line(error)
        todo = "What was saved before is intact: mend this, and run the same command again."
        return f"{where} cannot be read or written: {why}. {todo}", 2
    if isinstance(error, MemoryError):
        return "out of memory: give smaller files, a smaller --batch-size or fewer --max-tokens.", 2
    return f"unexpected {type(error).__name__}: {error}. {DEBUG} shows where; please report it.", 3


def _fail(message: str, exit_code: int) -> NoReturn:
    from flipsearch.commands import console

    console.show_error(message, exit_code, as_json="--json" in sys.argv)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
