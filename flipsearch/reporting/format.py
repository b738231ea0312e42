"""How figures, texts and contexts are written for readers: percentages, intervals, text cleaning, cells and names.

A figure that was not measured is a dash, never 0. Notes come in kinds: what the numbers cannot show, how they were
made, and facts. A cell of a page's table has a figure with its interval, what it is sorted by, and its bar; a template
draws it for readers without scripts, and the page's script in the same way for all other rows.

Rows are named by what distinguishes their contexts: a template with those parameters that are not the usual ones of its
rows, a child of an operator with what it changed in its parent. Names quote contexts, which are hostile text.
"""

import difflib
import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from markupsafe import Markup, escape

from flipsearch.core.files import printable
from flipsearch.core.measurements import Difference, Estimate, Measurement, Rate
from flipsearch.core.records import FLIP_KINDS, Context
from flipsearch.core.studies import Study, Trial
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


_OPTION = re.compile(r"--[a-z][a-z-]*")


def unbroken(text: str) -> Markup:
    """Return a sentence, escaped, of which no line begins with a percent sign or ends within an option."""
    safe = str(escape(visible(text.replace(" %", "\u00a0%"))))
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', safe))


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
    r"|were cut|withheld|above|there is no|only deceive|no reader does|unscored|placebo flips|being extended",
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


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table of the page shows of one column of one trial."""

    text: str = DASH
    small: str = ""
    """On the line below: an interval, or what the figure rests on."""
    sort: float | str | None = None
    """What rows are sorted by; None comes last."""
    bars: tuple[tuple[str, float, float], ...] = ()
    """Parts of a bar: name of its colour, start and width in percent."""
    whisker: tuple[float, float] | None = None
    """Ends of the interval that is drawn on the bar, in percent."""
    warns: bool = False
    """The small text is a warning."""


def text_cell(value: Any, _: Study) -> Cell:
    """Return a text or a number as it is."""
    return Cell() if value is None else Cell(f"{value:,}" if isinstance(value, int) else str(value), sort=value)


def rate_cell(rate: Rate | None, _: Study) -> Cell:
    """Return a rate with its interval and n."""
    if not rate or not rate.n:
        return Cell()
    return Cell(percent(rate.value), f"{low_high(rate)}, n {rate.n:,}", rate.value)


def bar_cell(rate: Rate | None, study: Study) -> Cell:
    """Return a rate with its interval, drawn as a bar."""
    cell = rate_cell(rate, study)
    if not rate or rate.value is None:
        return cell
    bars = (("good", 0.0, round(100 * rate.value, 2)),)
    return Cell(cell.text, cell.small, cell.sort, bars, (round(100 * rate.low, 2), round(100 * rate.high, 2)))


def kinds_cell(measured: Measurement, study: Study) -> Cell:
    """Return what unsafe answers turn into, as a bar with a part for each kind."""
    total = measured.num_unsafe_before
    if not total:
        return Cell()
    counted, at = study.settings.get("count_flips", FLIP_KINDS), 0.0
    bars, words = [], []
    for kind in FLIP_KINDS:
        if count := measured.kinds_after.get(kind, 0):
            share = 100 * count / total
            bars.append((kind, round(at, 2), round(share, 2)))
            words.append(f"{count} {kind}{'' if kind in counted else ', not counted'}")
            at += share
    return Cell("", f"{'; '.join(words) or 'none'} of {total}", sum(b[2] for b in bars), tuple(bars))


def difference_cell(figure: Difference | Rate | None, _: Study | None = None) -> Cell:
    """Return a difference of rates in points, with its interval."""
    if not figure or not figure.n:
        return Cell()
    return Cell(points(figure.value), low_high(figure, "points"), figure.value)


def estimate_cell(figure: Estimate | None, _: Study) -> Cell:
    """Return an estimated rate with its interval in words."""
    if not figure or figure.value is None:
        return Cell()
    return Cell(percent(figure.value), interval(figure), figure.value)


def change_cell(figure: Estimate | None, _: Study) -> Cell:
    """Return an estimated change in points, with its interval and n."""
    if not figure:
        return Cell()
    return Cell(points(figure.value), f"{low_high(figure, 'points')}, {figure.n:,} prompts", figure.value)


def outcome_cell(trial: Trial, study: Study) -> Cell:
    """Return how far a trial got, and whether it is over a cap."""
    notes = [f"rung {trial.rung + 1}"] if trial.state in ("running", "pruned", "stopped") else []
    is_over = study.is_over_any_cap(trial)
    if is_over:
        notes.append("over the cap" if study.is_over_cap(trial) else "over the cap on contraction")
    text = trial.state if trial.role == "arm" else "placebo"
    return Cell(text, ", ".join(notes), text, warns=is_over)


def standing(trial: Trial, study: Study) -> str:
    """Return how a trial stands to the winner, or ""."""
    if study.winner and study.winner.number == trial.number:
        return "winner" if study.is_confirmed else "best of the search"
    if trial.ties_winner:
        return "ties with the winner"
    return "ties with the winner on the search split" if trial.context.context_id in study.search_ties else ""


def context_cell(trial: Trial, study: Study, name: str) -> Cell:
    """Return a context's name, where it is placed, and how it stands to the winner."""
    small = " · ".join(filter(None, (trial.context.placement, standing(trial, study))))
    return Cell(name, small, name.lower())


LONGEST_QUOTE = 34
"""Characters of a context that its name quotes at most."""


@dataclass(frozen=True, slots=True)
class WordChange:
    """A run of words of a text that is kept, removed or added."""

    kind: str
    """same, removed or added."""
    words: str


@lru_cache(maxsize=4096)
def word_changes(before: str, after: str) -> tuple[WordChange, ...]:
    """Return how one text becomes another: whole lines where they come or go, word by word where one is rewritten."""
    changes: list[WordChange] = []
    for operation, old, new in _edits(before.splitlines(keepends=True), after.splitlines(keepends=True)):
        if operation == "replace":
            words = (re.findall(r"\s*\S+|\s+", text) for text in (old, new))
            changes += [change for edit in _edits(*words) for change in _changes(*edit)]
        else:
            changes += _changes(operation, old, new)
    return tuple(changes)


def _edits(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (what happens, what was there, what comes instead), piece by piece."""
    for operation, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        yield operation, "".join(old[i:j]), "".join(new[k:m])


def _changes(operation: str, old: str, new: str) -> list[WordChange]:
    if operation == "equal":
        return [WordChange("same", new)]
    return [WordChange(kind, words) for kind, words in (("removed", old), ("added", new)) if words]


def quoted(text: str, most: int = LONGEST_QUOTE) -> str:
    """Return the beginning of a text in one line, in quotation marks."""
    line = " ".join(text[: 8 * most].split())
    return f"“{line if len(line) <= most else line[: most - 1].rstrip() + '…'}”"


def names_of(study: Study) -> dict[int, str]:
    """Return the number of each trial -> its name, each once: with placement and rank where it takes them."""
    by_id = {trial.context.context_id: trial.context for trial in study.trials}
    usual: dict[tuple[str, str], Counter[str]] = {}
    for trial in study.trials:
        if not trial.context.parents:
            for param, value in trial.context.params:
                usual.setdefault((trial.context.template, param), Counter())[str(value)] += 1
    usuals = {key: values.most_common(1)[0][0] for key, values in usual.items()}
    names = {trial.number: _name(trial, by_id, usuals) for trial in study.trials}
    placements = {trial.number: trial.context.placement for trial in study.trials}
    ranks = {  # placebos have none
        trial.number: f"#{rank}" if trial.role == "arm" else trial.context.context_id
        for rank, trial in enumerate(study.trials, start=1)
    }
    for suffix in (placements, ranks):
        counts = Counter(names.values())
        names = {n: f"{name} · {suffix[n]}" if counts[name] > 1 else name for n, name in names.items()}
    return names


def _name(trial: Trial, by_id: Mapping[str, Context], usual: Mapping[tuple[str, str], str]) -> str:
    """Return a trial's name; of its parameters those are in it that are not the usual ones of its template here."""
    context = trial.context
    if not context.text.strip():
        return "no context"
    if trial.role == "placebo":
        return f"placebo: {(context.template or context.origin).removeprefix('placebo_')}"
    if context.parents:
        parent = by_id.get(context.parents[0])
        return f"{context.operator or 'made'}{f': {_change(parent, context)}' if parent else ''}"
    if context.template or context.operator:
        is_usual = usual if context.template else {}
        own = [
            (param, value) for param, value in context.params if is_usual.get((context.template, param)) != str(value)
        ]
        shown = [(param.replace("_", " "), value) for param, value in own if len(str(value)) <= LONGEST_QUOTE]
        words = [
            f"{param}={value}" if not isinstance(value, bool) else param if value else f"no {param}"
            for param, value in shown
        ]
        return context.origin + (f" ({', '.join(words)})" if words else "")
    return quoted(context.text)


def _change(parent: Context, child: Context) -> str:
    """Return the most telling difference of a child to its parent, in a few words."""
    if parent.text == child.text:
        return f"{parent.placement} → {child.placement}"
    changes = [change for change in word_changes(parent.text, child.text) if change.kind != "same"]
    longest = max(changes, key=lambda change: len(change.words))
    sign = "+" if longest.kind == "added" else "−"
    return f"{sign} {quoted(longest.words)}"
