"""Charts as plain geometry: axes with their ticks, and lines as SVG paths, or points; templates/chart.html draws them.

A value that is not finite is never drawn as a number: the line breaks, and a cross marks the upper edge. A step without
the value was not measured: the line continues to the next one that has it. Knows no log, no study and no HTML.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from flipsearch.reporting.format import LARGEST, is_drawable, three_digits, without_padding

WIDTH, HEIGHT = 360, 186
LEFT, RIGHT, TOP, BOTTOM = 50, 346, 24, 160
NUM_TICKS = 4
"""About this many steps from one end of an axis to the other."""
LOG_FROM = 50
"""Ratio of the largest to the smallest value from which an axis that may be logarithmic is."""
SMOOTH_FROM, DOTS_TO = 60, 30
"""A line of more points is smoothed over faint raw values; one of at most DOTS_TO has a dot at each."""
MAX_REACH = 300
"""Steps to either side that a smoothed point may average over."""

Point = tuple[float, float]
Colour = Literal["all", "harmful", "benign"]
Position = Callable[[float], float]
"""Value -> its place in the drawing's units."""


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """What the values of a chart are, and how far its axis reaches."""

    unit: str
    is_rate: bool = False
    """Fractions, shown in percent."""
    low: float | None = 0.0
    """The axis begins here or lower; None lets the values decide."""
    high: float | None = None
    """The axis ends here or higher; None lets the values decide."""
    may_be_log: bool = False
    """Logarithmic where the values span enough (LOG_FROM)."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled number on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis laid out over a length of the drawing."""

    place: Position
    ticks: tuple[Tick, ...]
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Values by step."""

    name: str
    points: Sequence[Point]
    """(step, value) in the order of the steps; steps without the value are left out."""
    colour: Colour = "all"
    dashed: bool = False
    is_noisy: bool = True
    """Smoothed where there are many points."""
    is_scattered: bool = False
    """Points in no order: no line joins them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series as it is drawn."""

    series: Series
    raw: str
    smooth: str
    """SVG path of their moving mean; "" where there are few."""
    dots: tuple[Point, ...]
    """Values that are isolated, or few."""
    crosses: tuple[float, ...]
    last: str
    broken: str
    """Which values are not finite, in words; "" if all are finite."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn."""

    title: str
    hint: str
    unit: str
    lines: tuple[Line, ...]
    across: Scale
    up: Scale
    """Without ticks where no value is finite."""
    description: str
    """The chart in words, for screen readers."""
    along: str = "step"
    """What the axis across counts."""


def value_scale(axis: ChartAxis, values: Sequence[float], start: float, end: float) -> Scale:
    """Return an axis from `start` to `end` that holds all drawable `values`; without any it has no ticks."""
    if not values:
        return Scale(_linear(0, 1, start, end), ())
    smallest = min((value for value in values if value > 0), default=math.inf)
    if axis.may_be_log and min(values) >= 0 and max(values) / LOG_FROM > smallest:
        return _log_scale(values, start, end)
    low = min(values if axis.low is None else [axis.low, *values])
    high = max(values if axis.high is None else [axis.high, *values])
    # Nearly equal values: rounding would make a span whose ticks are all the same.
    if high - low <= 1e-6 * max(abs(high), abs(low)) or high - low < 1 / LARGEST:
        high = low + (abs(low) if abs(low) > 1 / LARGEST else 1.0)
    step = _nice_step(high - low)
    ticks = [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    place = _linear(ticks[0], ticks[-1], start, end)
    labelled = zip(ticks, _labels(axis, ticks), strict=True)
    return Scale(place, tuple(Tick(place(tick), label) for tick, label in labelled))


def _log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Return an axis of powers of ten; where some values are zero, zero is its lower end."""
    positive = [value for value in values if value > 0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    every, has_zero = math.ceil((last - first) / NUM_TICKS), min(values) <= 0
    powers = range(first - every * has_zero, last + every, every)
    inner = _linear(powers[0], powers[-1], start, end)
    labels = [f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}" for power in powers]
    if has_zero:
        labels[0] = "0"
    ticks = tuple(Tick(inner(power), label) for power, label in zip(powers, labels, strict=True))
    return Scale(lambda value: inner(max(powers[0], math.log10(value))) if value > 0 else start, ticks, is_log=True)


def step_scale(first: float, last: float, start: float, end: float) -> Scale:
    """Return an axis of whole steps from `first` to `last`."""
    place, step = _linear(first, last, start, end), max(1.0, _nice_step(last - first))
    ticks = [index * step for index in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return Scale(place, tuple(Tick(place(tick), f"{tick:,.0f}") for tick in ticks))


def _linear(low: float, high: float, start: float, end: float) -> Position:
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.5)


def _nice_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, about NUM_TICKS of which make the span."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= 0.8 * span / NUM_TICKS)


def _labels(axis: ChartAxis, ticks: Sequence[float]) -> list[str]:
    """Return the ticks with as many digits as distinguish neighbours."""
    factor, unit = (100, " %") if axis.is_rate else (1, "")
    step, largest = factor * (ticks[1] - ticks[0]), factor * max(map(abs, ticks))
    if 1e-2 <= largest < 1e6:
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        # + 0.0: there is no minus zero on an axis.
        return [f"{factor * tick + 0.0:,.{digits}f}{unit}" for tick in ticks]
    digits = max(0, math.ceil(math.log10(largest / step)))
    return [(without_padding(f"{factor * tick:.{digits}e}") if tick else "0") + unit for tick in ticks]


def draw(
    title: str,
    hint: str,
    axis: ChartAxis,
    series: Sequence[Series],
    steps: tuple[float, float],
    along: str = "step",
    across_axis: ChartAxis | None = None,
) -> Chart | None:
    """Return the chart of what was measured from the first to the last of `steps`, or None if nothing was.

    Steps are whole numbers, unless `across_axis` says what they are.
    """
    shown = [curve for curve in series if curve.points]
    if not shown:
        return None
    values = [value for curve in shown for _, value in curve.points if is_drawable(value)]
    across = value_scale(across_axis, steps, LEFT, RIGHT) if across_axis else step_scale(*steps, LEFT, RIGHT)
    up = value_scale(axis, values, BOTTOM, TOP)
    num = max(len(curve.points) for curve in shown)
    lines = tuple(_line(curve, axis, steps[1], num, across.place, up.place) for curve in shown)
    unit = ", ".join(filter(None, (axis.unit, "logarithmic" if up.is_log else "")))
    reach = f"s {steps[0]:,.0f} to {steps[1]:,.0f}"
    if across_axis:
        reach = f" {' to '.join(three_digits(step, across_axis.is_rate) for step in steps)}"
    description = f"{along[:1].upper()}{along[1:]}{reach}. " + " ".join(_in_words(line, axis) for line in lines)
    return Chart(title, hint, unit, lines, across, up, description, along)


def _line(series: Series, axis: ChartAxis, last_step: float, num: int, x: Position, y: Position) -> Line:
    """Return a series in the drawing's units; `num` is the number of points of the longest series of the chart."""
    by_finite = groupby(series.points, key=lambda point: is_drawable(point[1]))
    runs = [list(run) for is_finite, run in by_finite if is_finite]
    is_smooth = series.is_noisy and num > SMOOTH_FROM
    shows_all = series.is_scattered or (num <= DOTS_TO and not series.dashed)
    dots = [point for run in runs for point in run if len(run) == 1 or shows_all]
    gaps = [step for step, value in series.points if not is_drawable(value)]
    step, value = series.points[-1]
    last = three_digits(value, axis.is_rate) + (f" at step {step:,.0f}" if step != last_step else "")
    if series.is_scattered:
        last = f"{len(series.points):,} points"
    broken = f"{series.name}: not finite at {len(gaps):,} of {len(series.points):,} steps, first at "
    return Line(
        series=series,
        raw="" if series.is_scattered else _path((_thinned(run, x) for run in runs), x, y),
        smooth=_path(map(_smoothed, runs), x, y) if is_smooth else "",
        dots=tuple((x(at), y(height)) for at, height in dots),
        crosses=tuple(sorted({round(x(gap), 0) for gap in gaps})),
        last=last,
        broken=f"{broken}{gaps[0]:,.0f}." if gaps else "",
    )


def _thinned(run: list[Point], x: Position) -> list[Point]:
    """Return the lowest and the highest value of every column of the drawing, so that no peak is lost."""
    if len(run) <= 2 * (RIGHT - LEFT):
        return run
    columns = (list(column) for _, column in groupby(run, key=lambda point: int(x(point[0]))))
    ends = ({min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1])} for column in columns)
    return [point for column in ends for point in sorted(column)]


def _smoothed(run: list[Point]) -> list[Point]:
    """Return the mean over a thirtieth of the steps around each point, the nearer ones weighing more."""
    reach = min(max(3, len(run) // 30), MAX_REACH, (len(run) - 1) // 2)
    kernel = 1.0 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    # The sum of the weights is less at the ends: the mean is over what is there.
    means = np.convolve([value for _, value in run], kernel, "same") / np.convolve(np.ones(len(run)), kernel, "same")
    every = max(1, len(run) // (RIGHT - LEFT))
    chosen = sorted({*range(0, len(run), every), len(run) - 1})
    return [(run[index][0], float(means[index])) for index in chosen]


def _path(runs: Iterable[Sequence[Point]], x: Position, y: Position) -> str:
    """Return the SVG path of several runs of points; a single point has none."""
    drawn = (run for run in runs if len(run) > 1)
    return "".join("M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in run) for run in drawn)


def _in_words(line: Line, axis: ChartAxis) -> str:
    """Return a line for screen readers: its first, last, lowest and highest value, and where it is not finite."""
    finite = [value for _, value in line.series.points if is_drawable(value)]
    first = three_digits(line.series.points[0][1], axis.is_rate)
    words = f"{line.series.name}: first {first}, last {line.last}"
    if line.series.is_scattered:
        words = f"{line.series.name}: {line.last}"
    if finite:
        lowest, highest = (three_digits(value, axis.is_rate) for value in (min(finite), max(finite)))
        words += f", lowest {lowest}, highest {highest}"
    return f"{words}. {line.broken}".strip()
