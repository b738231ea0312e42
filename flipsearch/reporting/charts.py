"""Line charts as plain geometry: where ticks stand and how lines go; templates/chart.html draws them as inline SVG.

A value that is not finite is never drawn as a number: the line breaks, and a cross stands at the upper edge. A step
that does not have the value was not measured: the line goes on to the next one that was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from flipsearch.reporting.axes import Axis, Ruler, is_drawable, number, step_ruler, value_ruler

WIDTH, HEIGHT = 360, 186
LEFT, RIGHT, TOP, BOTTOM = 50, 346, 24, 160
SMOOTH_FROM, DOTS_TO = 60, 30
"""Lines of more points get a smoothed line over faint raw ones; lines of at most so many a dot at each."""
MAX_REACH = 300
"""Steps to either side that a smoothed point may rest on."""

Point = tuple[float, float]
Colour = Literal["all", "harmful", "benign"]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Series:
    """Values by step."""

    name: str
    """For the legend."""
    points: Sequence[Point]
    """(step, value) in the order of the steps; steps without the value are left out."""
    colour: Colour = "all"
    """What it is of."""
    dashed: bool = False
    """Drawn so beside another of the same colour."""
    is_noisy: bool = True
    """Many points are smoothed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series as it is drawn."""

    series: Series
    """What is drawn."""
    raw: str
    """Path of the values."""
    smooth: str
    """Path of their moving mean; "" where there are few."""
    dots: tuple[Point, ...]
    """Values that stand alone, or are few."""
    crosses: tuple[float, ...]
    """Where values are not finite."""
    last: str
    """The last value in words."""
    broken: str
    """Which values are not finite, in words; "" if all are."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn."""

    title: str
    """What it shows."""
    hint: str
    """What to look for."""
    unit: str
    """Of the values."""
    lines: tuple[Line, ...]
    """At least one."""
    across: Ruler
    """Of the steps."""
    up: Ruler
    """Of the values; without ticks where no value is finite."""
    description: str
    """The same in words, for those who do not see it."""


def draw(title: str, hint: str, axis: Axis, series: Sequence[Series], steps: tuple[float, float]) -> Chart | None:
    """Return the chart of what was measured from the first to the last of `steps`, or None if nothing was."""
    shown = [one for one in series if one.points]
    if not shown:
        return None
    values = [value for one in shown for _, value in one.points if is_drawable(value)]
    across, up = step_ruler(*steps, LEFT, RIGHT), value_ruler(axis, values, BOTTOM, TOP)
    num = max(len(one.points) for one in shown)
    lines = tuple(_line(one, axis, steps[1], num, across.place, up.place) for one in shown)
    return Chart(
        title=title,
        hint=hint,
        unit=", ".join(filter(None, (axis.unit, "logarithmic" if up.is_log else ""))),
        lines=lines,
        across=across,
        up=up,
        description=f"Steps {steps[0]:,.0f} to {steps[1]:,.0f}. " + " ".join(_in_words(line, axis) for line in lines),
    )


def _line(series: Series, axis: Axis, last_step: float, num: int, x: Scale, y: Scale) -> Line:
    runs = list(_finite_runs(series.points))
    is_smooth = series.is_noisy and num > SMOOTH_FROM
    dots = [point for run in runs for point in run if num <= DOTS_TO or len(run) == 1]
    step, value = series.points[-1]
    return Line(
        series=series,
        raw="".join(_path(_thinned(run, x), x, y) for run in runs if len(run) > 1),
        smooth="".join(_path(_smoothed(run), x, y) for run in runs if len(run) > 1) if is_smooth else "",
        dots=tuple((x(at), y(height)) for at, height in dots),
        crosses=tuple(sorted({round(x(at), 0) for at, height in series.points if not is_drawable(height)})),
        last=number(value, axis.is_rate) + (f" at step {step:,.0f}" if step != last_step else ""),
        broken=_broken(series),
    )


def _finite_runs(points: Sequence[Point]) -> Iterator[list[Point]]:
    for is_finite, run in groupby(points, key=lambda point: is_drawable(point[1])):
        if is_finite:
            yield list(run)


def _thinned(run: list[Point], x: Scale) -> list[Point]:
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


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)


def _broken(series: Series) -> str:
    broken = [step for step, value in series.points if not is_drawable(value)]
    if not broken:
        return ""
    return f"{series.name}: not finite at {len(broken):,} of {len(series.points):,} steps, first at {broken[0]:,.0f}."


def _in_words(line: Line, axis: Axis) -> str:
    finite = [value for _, value in line.series.points if is_drawable(value)]
    first = number(line.series.points[0][1], axis.is_rate)
    words = f"{line.series.name}: first {first}, last {line.last}"
    if finite:
        words += f", lowest {number(min(finite), axis.is_rate)}, highest {number(max(finite), axis.is_rate)}"
    return f"{words}. {line.broken}".strip()
