"""How figures and texts are written for readers: the one place for percentages, intervals, numbers and text cleaning.

A figure that was not measured is a dash, never 0. Knows records; knows no page and no terminal.

Notes come in kinds: what the numbers cannot show, how they were made, and facts.
"""

import html
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from flipsearch.core.display import printable
from flipsearch.core.measurements import Difference, Estimate, Rate
from flipsearch.core.studies import Study
from flipsearch.core.trainings import Scorecard, TrainingRun

Figure = Rate | Estimate | Difference
Unit = Literal["percent", "points", "plain"]
DASH = "–"
SHARED_ERRORS = (
    "That holds if the judge errs independently on the two answers to a prompt. Where it errs on a prompt as such, as "
    "when it misreads its topic with and without the context, the rate is off and its interval too narrow."
)
"""What to know of every rate that is corrected by a judge's accuracy."""
LARGEST = 1e100
"""A larger value is treated as not finite: no axis could show it."""
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~])")


def percent(value: float | None, unit: str = " %") -> str:
    """Return a fraction as a percentage with one decimal; tables of a terminal write its unit without the space."""
    return DASH if value is None else f"{100 * value:.1f}{unit}"


def points(value: float | None) -> str:
    """Return a difference of fractions in signed percentage points; 0.0 has no sign."""
    if value is None:
        return DASH
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def low_high(figure: Figure, unit: Unit = "percent") -> str:
    """Return the ends of a 95 % interval: 10.2–15.9 of a fraction in percent, -1.2 to +3.4 of a difference."""
    if unit == "points":
        return f"{points(figure.low)} to {points(figure.high)}"
    return f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"


def interval(figure: Figure) -> str:
    """Return the interval of a fraction and what it rests on, in words."""
    size = f"{figure.count} of {figure.n}" if isinstance(figure, Rate) else f"n = {figure.n:,}"
    return f"{low_high(figure)} % (95 %), {size}"


def with_interval(figure: Figure, unit: Unit) -> str:
    """Return a figure and its interval for a narrow column.

    A fraction is 12.3% (10–16), a difference -1.0 (-2.4 to +0.3), any other figure 0.87 (0.80–0.93).
    """
    if figure.value is None:
        return DASH
    if unit == "points":
        return f"{points(figure.value)} ({low_high(figure, unit)})"
    if unit == "percent":
        return f"{percent(figure.value, '%')} ({100 * figure.low:.0f}–{100 * figure.high:.0f})"
    return f"{figure.value:.2f} ({figure.low:.2f}–{figure.high:.2f})"


def is_drawable(value: float) -> bool:
    """Return whether a value is finite and small enough to be shown as a number."""
    return math.isfinite(value) and abs(value) < LARGEST


def three_digits(value: float, is_rate: bool = False) -> str:
    """Return a number with three significant digits, a rate in percent; one that is not finite in words."""
    if not math.isfinite(value):
        return "not finite" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    if is_rate and abs(value) < LARGEST:
        return f"{without_padding(f'{100 * value:.3g}')} %"
    if value and abs(value) < 1e-3:
        return without_padding(f"{value:.2e}")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else without_padding(f"{value:.3g}")


def without_padding(text: str) -> str:
    """Return a number in scientific notation without the padding of its mantissa and exponent: 2e-4, not 2.00e-04."""
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}" if exponent else text


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes, hours or days."""
    if not is_drawable(seconds):
        return three_digits(seconds)
    if seconds < 60:
        return f"{three_digits(seconds)} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that have a value, sorted by name; those inside others as "outer.inner"."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            rows += [(f"{key}.{inner}", text) for inner, text in setting_rows(value)]
        elif isinstance(value, list | tuple):
            rows += [(key, ", ".join(map(str, value)))] if value else []
        elif value not in (None, ""):
            rows.append((key, str(value)))
    return rows


def visible(value: Any) -> Any:
    """Return a text for a page as `printable` makes it; any other value is returned as it is, for Jinja.

    Markup stays markup.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return type(value)(text) if hasattr(value, "__html__") else text


def code(text: str) -> str:
    """Return a text as Markdown code in one line; backticks of its own become apostrophes."""
    return f"`{printable(' '.join(text.replace('`', chr(39)).split()))}`"


def escaped(text: str) -> str:
    """Return a text in one line that Markdown and HTML show as it is."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(" ".join(text.split())), quote=False))


def unbroken(text: str) -> str:
    """Return a sentence of which no line begins with a percent sign."""
    return text.replace(" %", "\u00a0%")


def fenced(text: str) -> str:
    """Return a Markdown code block that holds `text` and that nothing in it can close."""
    shown = str(visible(text.replace("\r\n", "\n").replace("\r", "\n")))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def markdown_table(header: list[str], rows: list[list[str]], num_names: int | None = None) -> str:
    """Return a Markdown table; the columns after the first `num_names` are right-aligned (None: no column is)."""
    num_left = len(header) if num_names is None else num_names
    rule = ["---"] * num_left + ["---:"] * (len(header) - num_left)
    lines = [header, rule, *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NoteKind = Literal["warning", "fact", "method"]
WARNING = re.compile(
    r"alarm|poor|few |little|cannot|could not|not known|not measured|not applied|not checked|does not|degenerate"
    r"|were cut|withheld|above|there is no|only deceive|no reader does|unscored|placebo flips|goes on",
    re.IGNORECASE,
)
METHOD = re.compile(
    r"screened|stopped early|sampled|rows of one|group|system role|unpacked|decoded|chat template|scored on every|seed",
    re.IGNORECASE,
)


def notes_by_kind(result: Study | TrainingRun | Scorecard, usual: NoteKind = "fact") -> Mapping[NoteKind, list[str]]:
    """Return the notes of a result by kind: what the numbers cannot show, how they were made, or what is `usual`."""
    notes: dict[NoteKind, list[str]] = {"warning": [], "fact": [], "method": []}
    for note in result.notes:
        warns = WARNING.search(note) and not note.startswith("On the ")
        notes["warning" if warns else "method" if METHOD.search(note) else usual].append(note)
    return notes
