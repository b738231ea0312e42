"""How a command writes to the terminal: lines, tables, JSON and errors, and on stderr how far it is.

Model output, prompts and contexts are printed as plain text: no markup, no control characters. How far a command is
shows as two bars in a terminal, and as plain lines in a file, a pipe or a batch job. Lines come when 5 % more are done,
and after 30 seconds in any case: a job that is silent looks dead.
"""

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from flipsearch.core.files import discard, escaped_json, printable
from flipsearch.core.progress import Activity, Phase, Step, announced_to
from flipsearch.reporting.format import duration

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.reporting.verdict import StudyVerdict, Tone
    from flipsearch.searching.plan import SearchPlan


NUM_SHOWN = 10
"""Rows of a table that may have many."""
NO_WIDTH = 80
"""Columns where a terminal says that it has none: in them rich would print nothing."""


class SteadyConsole(Console):
    """A console whose reader may leave: without one of its progress a command works on, rich would end it in silence.

    Results that nobody reads are printed no further; the command keeps its own exit code (options.printing).
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        if not self.width:
            self.width = NO_WIDTH

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
    SteadyConsole().print(Text(printable(text), style=style))


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
    columns, breaks = list(zip(header, *rows, strict=True)), range(num_whole, num_names)
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    words = [max(map(len, " ".join(column).split()), default=0) for column in columns]

    def shrunk(least: Sequence[int]) -> list[int]:
        return [min(width, least[n]) if n in breaks else width for n, width in enumerate(widths)]

    # Words are whole where that is possible.
    sizes = (shrunk([max(word, least) for word in words]), shrunk([least] * len(words)))
    room = get_terminal_size().columns
    fitting = ((size, gap) for size in sizes for gap in (2, 1) if sum(size) + gap * (len(header) - 1) <= room)
    size, gap = next(fitting, (widths, None))
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
        whole = number not in breaks
        table.add_column(name, justify=justify, no_wrap=whole, overflow="fold", min_width=size[number])
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    SteadyConsole().print(table)


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


FIRST_S, SILENT_S, SHARE_STEP = 3.0, 30.0, 0.05
"""The first line is due after so much time; each further one after so much more, or so much of the work."""
LEAST_S = 1.0
"""Between two lines, however fast the work is."""
PARTS = {
    Phase.BASELINE: "baseline",
    Phase.PLACEBO: "placebos",
    Phase.RACE: "race",
    Phase.CONFIRM_BASELINE: "confirm",
    Phase.FINALISTS: "confirm",
    Phase.DEPTH: "depth",
    Phase.BENIGN_CONTEXTS: "benign context",
}
"""Phase -> the part of a search plan that its rollouts belong to."""
LEAST_SHARE = 0.02
"""Of the work must have been done at this speed before the time left is estimated."""


class WorkState:
    """What is done, how fast, and what is left, from the steps that a command reports; the plan may come later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan: SearchPlan | None = None
        self.step, self.work = Step(Phase.STARTING), "loading the libraries"
        """Until the next step `work` says more than the step does."""
        self.done = self.total = 0
        self.share: float | None = None
        """Of all planned rollouts, or of the budget or time if more of these is spent; it never falls."""
        self._clock, self._start = clock, clock()
        self._rollouts: dict[str, float] = {}
        self._first: tuple[float, int, float] | None = None
        self._num_tokens = 0

    def update(self, step: Step, done: int, total: int, num_tokens: int) -> None:
        """Take in that `done` of `total` items of a step are done, and all tokens that were generated so far."""
        before = self.done if (step, total) == (self.step, self.total) and done >= self.done else 0
        if (part := PARTS.get(step.phase)) and step.activity is Activity.GENERATING:
            self._rollouts[part] = self._rollouts.get(part, 0) + done - before
        if num_tokens < self._num_tokens:  # another model of the same command, which counts from 0
            self._first = None
        self.step, self.done, self.total, self._num_tokens, self.work = step, done, total, num_tokens, ""
        self.share = max(self.share or 0.0, share) if (share := self._share()) is not None else self.share
        if num_tokens and not self._first:
            self._first = (self._clock(), num_tokens, self.share or 0.0)

    def _share(self) -> float | None:
        if self.plan is None:
            return self.done / self.total if self.step.phase is Phase.TRAINING and self.total else None
        parts, left = list(self.plan.rollouts), 0.0
        # How many contexts are pruned early is not known before: between least and most lies what is expected.
        expected = {
            name: math.sqrt(max(1, span.least) * max(1, span.most)) for name, span in self.plan.rollouts.items()
        }
        here = PARTS.get(self.step.phase, "race" if self._rollouts.get("race") else "placebos")
        for name in parts[parts.index(here) :] if here in parts else parts:
            left += max(expected[name] - self._rollouts.get(name, 0), 0.05 * expected[name])
        done = sum(self._rollouts.values())
        shares = [done / (done + left)]
        if self.plan.budget_tokens:
            shares.append(self.step.study_tokens / self.plan.budget_tokens)
        if self.plan.time_s:
            shares.append((self._clock() - self._start) / self.plan.time_s)
        return min(0.99, max(shares))

    def tokens_per_s(self) -> float | None:
        """Return the speed since the first tokens came; None before there is one."""
        if self._first is None or (passed := self._clock() - self._first[0]) <= 0:
            return None
        return (self._num_tokens - self._first[1]) / passed

    def seconds_left(self) -> float | None:
        """Return the time left at the speed since the first tokens came; None while too little is done to know it."""
        if self._first is None or self.share is None or self.share - self._first[2] < LEAST_SHARE:
            return None
        return (self._clock() - self._first[0]) * (1 - self.share) / (self.share - self._first[2])

    def figures(self) -> list[str]:
        """Return speed, time left, the best flip rate so far and what is left of a budget, as far as they are known."""
        speed, left, best = self.tokens_per_s(), self.seconds_left(), self.step.best
        shown = [f"{speed:,.0f} tokens/s"] if speed else []
        shown += [f"about {duration(round(left))} left"] if left is not None else []
        shown += [f"best {best.value:.0%} of {best.n}"] if best and best.value is not None else []
        if self.plan and self.plan.budget_tokens:
            shown.append(f"budget left {max(0, self.plan.budget_tokens - self.step.study_tokens):,} tokens")
        if self.plan and self.plan.time_s:
            shown.append(f"budget left {duration(max(0, round(self.plan.time_s - self._clock() + self._start)))}")
        return shown

    def line(self) -> str:
        """Return all of it in one line."""
        share = [f"{self.share:.0%}"] if self.share is not None else []
        counts = f" {self.done:,}/{self.total:,}" if self.total else ""
        shown = [self.work] if self.work else [f"{self.step.label}{counts}", *self.figures()]
        return printable(" | ".join([*share, *shown]))  # may quote an endpoint


class ProgressDisplay:
    """Takes the steps that a command reports and shows where it is; used within its own `with`."""

    def __init__(self, console: Console, silent_s: float = SILENT_S) -> None:
        self.state, self._console = WorkState(), console
        self._start = time.monotonic()
        self._shows_bars = console.is_terminal and not console.is_dumb_terminal
        self._silent_s, self._lock, self._end = silent_s, threading.Lock(), threading.Event()
        self._shown = (time.monotonic() + min(0.0, FIRST_S - silent_s), 0.0)

    def __call__(self, step: Step, done: int, total: int, num_rollouts: int, num_tokens: int) -> None:
        """Take in a step; outside of a terminal it is shown when it is due."""
        with self._lock:
            self.state.update(step, done, total, num_tokens)
            since, share = self._shown
            is_due = (self.state.share or 0.0) - share >= SHARE_STEP and time.monotonic() - since >= LEAST_S
            if not self._shows_bars and is_due and time.monotonic() - self._start >= FIRST_S:
                self._print()

    def announce(self, work: str) -> None:
        """Take in what is done where nothing is counted: loading, checks; outside of a terminal it is a line."""
        with self._lock:
            is_new, self.state.work = work != self.state.work, work
            if is_new and not self._shows_bars and time.monotonic() - self._start >= FIRST_S:
                self._print()

    def show_plan(self, plan: "SearchPlan", lines: Iterable[str]) -> None:
        """Print what lies ahead, above the bars, and measure all that comes by it."""
        self.state.plan = plan
        self.show_lines(lines)

    def show_lines(self, lines: Iterable[str]) -> None:
        """Print lines above the bars."""
        for line in lines:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def begin_part(self, line: str) -> None:
        """Print what begins now, and measure it by itself: a sweep is one training after the other."""
        with self._lock:
            self.state, self._shown = WorkState(), (time.monotonic(), 0.0)
        self.show_lines([line])

    @contextmanager
    def shown(self) -> Iterator["ProgressDisplay"]:
        """Draw the bars, or print lines, until the block ends."""
        if self._shows_bars:
            with Live(console=self._console, get_renderable=self._bars, refresh_per_second=4, transient=True):
                yield self
            return
        thread = threading.Thread(target=self._break_silence, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()

    def _break_silence(self) -> None:
        """Print where the command is whenever nothing was printed for a while."""
        while not self._end.wait(max(0.01, self._shown[0] + self._silent_s - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._shown[0] >= self._silent_s:
                    self._print()

    def _print(self) -> None:
        self._shown = (time.monotonic(), self.state.share or 0.0)
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {self.state.line()}"), soft_wrap=True)

    def _bars(self) -> Table:
        state, grid = self.state, Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, overflow="ellipsis", min_width=34, max_width=44)
        grid.add_column(width=14)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        speed = [text for text in state.figures() if not text.startswith(("best", "budget"))]
        others = [text for text in state.figures() if text not in speed]
        if state.share is not None:
            overall = f"{state.share:.0%}  {', '.join(speed)}"
            name = f"all, {', '.join(others)}" if others else "all"
            grid.add_row(Text(name), ProgressBar(1.0, state.share, width=14), Text(overall))
        counts = f"{state.done:,}/{state.total:,}" if state.total else ""
        rate = "" if state.share is not None else ", ".join(speed)
        label = printable(state.work or replace(state.step, status="").label)
        bar = ProgressBar(state.total or None, state.done, width=14, pulse=not state.total)
        grid.add_row(Text(label), bar, Text("" if state.work else f"{counts}  {rate}".strip()))
        if state.step.status:  # may quote an endpoint
            grid.add_row(Text(printable(f"({state.step.status})")), "", "")
        return grid


@contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Show on stderr how far a command is while it works."""
    display = ProgressDisplay(SteadyConsole(stderr=True))
    with display.shown(), announced_to(display.announce):
        yield display
