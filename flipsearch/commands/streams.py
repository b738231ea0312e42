"""The standard streams of the command line: always open, never unable to spell a character, stdout for results alone.

Imports nothing heavy: it is used before a command is known.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


def prepare_streams() -> None:
    """Open streams that the caller closed on the null device, and let stdout replace what its encoding lacks.

    A file opened next would otherwise get the number of a closed stream, and what a library prints would land in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(null, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send what judges, plug-ins and libraries print in a block to stderr, also what they write to the descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def discard_stdout() -> None:
    """Send what is still to be flushed to the null device, so that a stream that failed does not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
