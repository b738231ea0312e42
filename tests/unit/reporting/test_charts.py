"""Charts: values are where the axis says, peaks survive thinning, what is not finite is not drawn as a number."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flipsearch.reporting.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    ChartAxis,
    Series,
    draw,
    step_scale,
    value_scale,
)

PLAIN, LOG, RATE = ChartAxis("nats"), ChartAxis("nats", may_be_log=True), ChartAxis("share", is_rate=True, high=1.0)


def drawn(values: list[float], axis: ChartAxis = PLAIN) -> Chart:
    points = [(float(step), value) for step, value in enumerate(values, start=1)]
    chart = draw("t", "h", axis, [Series("s", points)], (1, len(values)))
    assert chart is not None
    return chart


def corners(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def labels(axis: ChartAxis, values: list[float]) -> list[str]:
    return [tick.label for tick in value_scale(axis, values, 0, 100).ticks]


@example([-5e-324], False, 0.0)
@given(st.lists(st.floats(-1e99, 1e99), min_size=1, max_size=8), st.booleans(), st.sampled_from([0.0, None]))
def test_all_values_are_on_the_axis_and_it_has_ticks(values: list[float], may_be_log: bool, low: float | None) -> None:
    scale = value_scale(ChartAxis("u", low=low, may_be_log=may_be_log), values, 0, 100)
    assert all(-1e-6 <= scale.place(value) <= 100 + 1e-6 for value in values)
    assert 2 <= len(scale.ticks) <= 9
    assert len({tick.label for tick in scale.ticks}) == len({tick.at for tick in scale.ticks}) == len(scale.ticks)


def test_a_linear_axis_begins_at_zero_and_its_numbers_are_round() -> None:
    assert labels(PLAIN, [37.0, 92.0]) == ["0", "20", "40", "60", "80", "100"]
    assert labels(PLAIN, [2e-4]) == ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]
    assert labels(PLAIN, [-0.5, 0.5]) == ["-0.6", "-0.4", "-0.2", "0.0", "0.2", "0.4", "0.6"]
    assert labels(PLAIN, [0.0]) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert labels(RATE, [0.1]) == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert labels(ChartAxis("", is_rate=True, low=None, high=1.0), [0.97]) == ["97 %", "98 %", "99 %", "100 %"]
    assert labels(ChartAxis("", is_rate=True, low=None, high=1.0), [0.999992])[:2] == ["99.9992 %", "99.9994 %"]


def test_a_span_of_decades_gets_a_logarithmic_axis_where_all_values_allow_it() -> None:
    assert labels(LOG, [0.002, 0.9]) == ["0.001", "0.01", "0.1", "1"]
    assert labels(LOG, [2e-6, 0.9])[0] == "1e-6"
    assert "logarithmic" in drawn([0.002, 0.9], LOG).unit
    assert "logarithmic" not in drawn([-0.01, 0.9], LOG).unit  # a negative value has no logarithm
    assert drawn([0.002, 0.9], ChartAxis("", may_be_log=True)).unit == "logarithmic"
    assert "logarithmic" not in drawn([0.5, 0.9], LOG).unit
    chart = drawn([0.01, 0.1, 1.0], LOG)
    heights = [y for _, y in corners(chart.lines[0].raw)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_zero_is_the_lower_end_of_a_logarithmic_axis() -> None:
    chart = drawn([0.9, 0.05, 0.002, 0.0], LOG)
    assert [tick.label for tick in chart.up.ticks] == ["0", "0.001", "0.01", "0.1", "1"]
    heights = [y for _, y in corners(chart.lines[0].raw)]
    assert heights[-1] == BOTTOM
    assert sorted(heights) == heights
    assert chart.up.ticks[1].at < BOTTOM


def test_points_are_at_their_step_and_value() -> None:
    (line,) = drawn([0.0, 50.0, 100.0]).lines
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert corners(line.raw) == [(LEFT, BOTTOM), middle, (RIGHT, TOP)]
    assert list(line.dots) == corners(line.raw)
    assert line.last == "100"


def test_one_step_is_a_dot_in_the_middle() -> None:
    (line,) = drawn([0.3]).lines
    assert [x for x, _ in line.dots] == [(LEFT + RIGHT) / 2]
    assert line.raw == line.smooth == ""


def test_steps_are_whole_numbers() -> None:
    assert [tick.label for tick in step_scale(1, 3, 0, 1).ticks] == ["1", "2", "3"]
    assert [tick.label for tick in step_scale(7, 7, 0, 1).ticks] == ["7"]
    assert [tick.label for tick in step_scale(1, 2000, 0, 1).ticks] == ["500", "1,000", "1,500", "2,000"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_value_that_is_not_finite_breaks_the_line_and_is_named(bad: float) -> None:
    chart = drawn([1.0, 2.0, bad, 2.0, 1.0])
    (line,) = chart.lines
    assert line.raw.count("M") == 2
    assert len(corners(line.raw)) == len(line.dots) == 4
    assert line.crosses == ((LEFT + RIGHT) / 2,)
    assert line.broken == "s: not finite at 1 of 5 steps, first at 3."
    assert line.broken in chart.description
    assert max(float(tick.label) for tick in chart.up.ticks) == 2


def test_a_finite_value_between_two_that_are_not_is_a_dot() -> None:
    (line,) = drawn([math.nan, 2.0, math.nan, *[1.0] * 40]).lines
    assert len(line.dots) == 1


def test_without_any_finite_value_there_is_no_axis_and_no_point() -> None:
    chart = drawn([math.nan] * 3)
    assert chart.up.ticks == ()
    assert chart.lines[0].raw == ""
    assert chart.lines[0].dots == ()
    assert chart.lines[0].last == "not finite"


def test_what_was_never_measured_has_no_chart() -> None:
    assert draw("t", "h", PLAIN, [Series("s", [])], (1, 9)) is None


def test_a_line_continues_over_steps_without_the_value_and_says_where_it_ends() -> None:
    chart = draw("t", "h", PLAIN, [Series("s", [(1, 1.0), (3, 3.0)])], (1, 4))
    assert chart is not None
    assert len(corners(chart.lines[0].raw)) == 2
    assert chart.lines[0].last == "3 at step 3"


def test_many_points_are_smoothed_over_faint_raw_ones() -> None:
    assert drawn([1.0, 2.0] * 30).lines[0].smooth == ""
    (line,) = drawn([1.0, 2.0] * 100).lines
    assert len(corners(line.raw)) == 200
    heights = [y for _, y in corners(line.smooth)]
    assert max(heights[5:-5]) - min(heights[5:-5]) < 0.2 * (BOTTOM - TOP)
    constant = [y for _, y in corners(drawn([3.0] * 200).lines[0].smooth)]
    assert max(constant) == min(constant)  # the ends too: the mean is over what is there


def test_the_mean_never_crosses_a_value_that_is_not_finite() -> None:
    (line,) = drawn([1.0] * 50 + [math.nan] + [3.0] * 50).lines
    first, second = line.smooth[1:].split("M")
    assert {y for _, y in corners("M" + first)} != {y for _, y in corners("M" + second)}
    assert all(len({y for _, y in corners("M" + part)}) == 1 for part in (first, second))


def test_thinning_keeps_every_peak_and_bounds_the_path() -> None:
    values = [1.0] * 50_000
    values[31_234], values[12_345] = 100.0, 0.0
    (line,) = drawn(values).lines
    points = corners(line.raw)
    assert len(points) < 4 * (RIGHT - LEFT)
    assert min(y for _, y in points) == TOP
    assert max(y for _, y in points) == BOTTOM
    assert [x for x, _ in points] == sorted(x for x, _ in points)
