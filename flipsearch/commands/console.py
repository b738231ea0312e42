"""How a command writes to the terminal: progress bars on stderr; lines, tables, JSON and errors.

Model output, prompts and contexts are printed as plain text: no markup, no control characters.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from flipsearch.core.files import printable
from flipsearch.core.progress import Step

Shown = TypeVar("Shown", bound="Result")


class Result(Protocol):
    """What a command returns."""

    def as_dict(self) -> dict[str, Any]:
        """Return what --json prints."""


def print_lines(*lines: str) -> None:
    """Print lines on stdout, as long as they are, without control characters."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def print_wrapped(text: str, style: str = "") -> None:
    """Print a text on stdout, broken at the width of the terminal, without control characters."""
    Console(highlight=False).print(Text(printable(text), style=style))


def plain_table(*columns: Column, **options: Any) -> Table:
    """Return a table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold", **options)


def figures(header: str) -> Column:
    """Return a column of figures."""
    return Column(header, justify="right", no_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    Console(highlight=False).print(table)


def print_result(result: Shown, json: bool, show: Callable[[Shown], None]) -> None:
    """Print the dictionary of a result as one JSON object, or let `show` print it for people."""
    if json:
        print_json(result.as_dict())
    else:
        show(result)


class Bars:
    """One progress bar that shows the phase at work, its rate and the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: Step | None = None
        self._task: TaskID | None = None
        self._start: tuple[float, int] | None = None

    def __call__(self, step: Step, done: int, total: int, num_rollouts: int, num_tokens: int) -> None:
        """Show `done` of `total` items of a step, and the tokens a second generated since the first ones came."""
        phase = replace(step, status="")
        if phase != self._step:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._step, self._task = phase, self._progress.add_task(phase.label, total=total, rate="")
        assert self._task is not None
        rate = ""
        if num_tokens:
            now = time.monotonic()
            self._start = self._start or (now, num_tokens)
            since, before = self._start
            rate = f"{(num_tokens - before) / (now - since):,.0f} tok/s" if now > since else ""
        # A status may quote an endpoint.
        self._progress.update(self._task, completed=done, total=total, rate=rate, description=printable(step.label))

    def show_lines(self, lines: Iterable[str]) -> None:
        """Print what lies ahead, above the bar."""
        for line in lines:
            self._progress.console.print(Text(printable(line)), soft_wrap=True)


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send what judges, plug-ins and libraries print in a block to stderr, also what they write to the descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show a progress bar on stderr while a command works; nothing is drawn where stderr is no terminal.

    What judges and libraries print meanwhile goes to stderr too.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    with only_results_on_stdout(), progress:
        yield Bars(progress)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, with escapes where the stream could not hold its characters."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    sys.stdout.write(text + "\n")


def show_error(message: str, exit_code: int, as_json: bool) -> None:
    """Print one line on stderr, and the same as JSON on stdout if asked for."""
    line = " ".join(printable(message).split())
    sys.stderr.write(f"flipsearch: {line}\n")
    if as_json:
        print_json({"error": line, "exit_code": exit_code})
