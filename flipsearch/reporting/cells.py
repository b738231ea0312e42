"""Cells of the page's tables: a figure with its interval, what it is sorted by, and the bar that is drawn above it.

A template draws them for readers without scripts, and the page's script in the same way for all other rows.
"""

from dataclasses import dataclass
from typing import Any

from flipsearch.core.measurements import Difference, Estimate, Measurement, Rate
from flipsearch.core.records import FLIP_KINDS
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
