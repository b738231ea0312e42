"""How a command writes to the terminal: lines, tables, JSON and errors.

Model output, prompts and contexts are printed as plain text: no markup, no control characters.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flipsearch.core.display import escaped_json, printable
from flipsearch.core.files import discard

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.reporting.verdict import StudyVerdict, Tone

NUM_SHOWN = 10
"""Rows of a table that may have many."""


class SteadyConsole(Console):
    """A console whose reader may leave: without one of its progress a command works on, rich would end it in silence.

    Results that nobody reads are printed no further; the command keeps its own exit code (options.printing).
    """

    def on_broken_pipe(self) -> None:
        """Go on without a reader, or say that results have none."""
        if not self.stderr:
            raise BrokenPipeError
        discard(sys.stderr)


def print_lines(*lines: str) -> None:
    """Print lines on stdout, as long as they are, without control characters."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def print_wrapped(text: str, style: str = "") -> None:
    """Print a text on stdout, broken at the width of the terminal, without control characters."""
    SteadyConsole(highlight=False).print(Text(printable(text), style=style))


def plain_table(*columns: Column, **options: Any) -> Table:
    """Return a table without lines."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold", **options)


def figures(header: str) -> Column:
    """Return a column of figures."""
    return Column(header, justify="right", no_wrap=True)


def print_figures(
    header: Sequence[str], rows: Sequence[Sequence[str]], num_names: int = 1, num_whole: int = 0, least: int = 12
) -> None:
    """Print rows as a table, or where the terminal is too narrow for that as blocks, one below another.

    The first `num_names` columns hold words: all but the first `num_whole` of them are broken where they are long, to
    `least` characters at least.
    """
    widths = [
        max(len(line) for cell in column for line in cell.split("\n")) for column in zip(header, *rows, strict=True)
    ]
    breaks = range(num_whole, num_names)
    needed = sum(min(width, least) if number in breaks else width for number, width in enumerate(widths))
    room = get_terminal_size().columns
    gap = next((gap for gap in (2, 1) if needed + gap * (len(header) - 1) <= room), None)
    if gap is None:
        for row in rows:
            print_wrapped(row[0], style="bold")
            for name, cell in zip(header[1:], row[1:], strict=True):
                if cell:
                    print_wrapped(f"  {name}: {cell}".replace("\n", ", "))
        return
    table = plain_table(padding=(0, gap), collapse_padding=True)
    for number, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if number < num_names else "right"
        table.add_column(name, justify=justify, no_wrap=number not in breaks, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    SteadyConsole(highlight=False).print(table)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command comes to: printed as one JSON object, or for people; and its exit code."""

    as_dict: Callable[[], Mapping[str, Any]]
    show: Callable[[], object]
    exit_code: int = 0

    def print(self, as_json: bool) -> None:
        """Print it on stdout."""
        if as_json:
            print_json(self.as_dict())
        else:
            self.show()


def outcome(result: Any, show: Callable[[Any], object], exit_code: int = 0) -> Outcome:
    """Return the outcome of a command that returns a result."""
    return Outcome(result.as_dict, lambda: show(result), exit_code)


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


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, with escapes where the stream could not hold its characters."""
    text = escaped_json(json.dumps(value, ensure_ascii=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    sys.stdout.write(text + "\n")


LONG_PART = re.compile(r"(?<!\w)'[^']{300,}'(?!\w)|\S{300,}")
"""Of an error: what somebody gave, such as a whole text in place of a file."""


def show_error(message: str, exit_code: int, as_json: bool) -> None:
    """Print one line on stderr, and the same as JSON on stdout if requested."""
    line = " ".join(printable(message).split())
    line = LONG_PART.sub(lambda part: f"{part[0][:150]}…{part[0][-50:]}", line)
    try:
        sys.stderr.write(f"flipsearch: {line}\n")
    except BrokenPipeError:
        discard(sys.stderr)
    if as_json:
        print_json({"error": line, "exit_code": exit_code})


TONES: "dict[Tone, str]" = {
    "good": "bold green",
    "warning": "bold yellow",
    "null": "bold",
    "unfinished": "bold",
    "open": "bold",
}


def show_verdict(conclusion: "StudyVerdict") -> None:
    """Print what was found in one sentence, what that rests on, and what to do next."""
    print_wrapped(f"\n{conclusion.sentence}", style=TONES[conclusion.tone])
    print_wrapped(" ".join(conclusion.basis))
    show_next_steps(conclusion)


def show_next_steps(conclusion: "StudyVerdict") -> None:
    """Print what to do next."""
    if conclusion.next_steps:
        print_lines("", "Next:")
    for step in conclusion.next_steps:
        print_wrapped(f"- {step.text}")
        if step.command:  # in one line, so that it can be copied
            print_lines(f"  {step.command}")
