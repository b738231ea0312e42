"""Cells of the page's tables: a figure with its interval, what it is sorted by, and the bar that is drawn above it.

A template draws them for readers without scripts, and the page's script in the same way for all other rows.

Rows are named by what distinguishes their contexts: a template with those parameters that are not the usual ones of its
rows, a child of an operator with what it changed in its parent. Names quote contexts, which are hostile text.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flipsearch.core.measurements import Difference, Estimate, Measurement, Rate
from flipsearch.core.records import FLIP_KINDS, Context
from flipsearch.core.studies import Study, Trial
from flipsearch.reporting.format import DASH, interval, low_high, percent, points


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
