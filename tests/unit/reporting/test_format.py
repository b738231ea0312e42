"""Figures as readers see them: one style, a dash where nothing was measured, and texts that do nothing."""

import math
from pathlib import Path

import pytest

from flipsearch.core.measurements import Difference, Estimate, Rate, json_value
from flipsearch.reporting.format import (
    code,
    duration,
    escaped,
    interval,
    percent,
    points,
    setting_rows,
    three_digits,
    visible,
    with_interval,
)

RATE, NOTHING = Rate(3, 24, 0.04, 0.31), Rate(0, 0, 0.0, 1.0)
CHANGE = Difference(-0.01, -0.03, 0.0, 24, 0.5)


def test_figures_have_three_digits_and_rates_are_per_cent() -> None:
    assert [three_digits(value) for value in (0.0312345, 2e-4, 1.234e-5, 41.26, 98765.4, 0, 3e12)] == [
        "0.0312", "2e-4", "1.23e-5", "41.3", "98,765", "0", "3e12",
    ]  # fmt: skip
    assert [three_digits(value, is_rate=True) for value in (0, 0.0625, 1)] == ["0 %", "6.25 %", "100 %"]
    assert [three_digits(value) for value in (math.nan, math.inf, -math.inf)] == [
        "not finite",
        "infinite",
        "minus infinite",
    ]


def test_rates_and_changes_have_their_interval() -> None:
    assert (percent(0.125), percent(0.125, "%")) == ("12.5 %", "12.5%")
    assert with_interval(RATE, "percent") == "12.5% (4–31)"
    assert interval(RATE) == "4.0–31.0 % (95 %), 3 of 24"
    assert interval(Estimate(0.5, 0.4, 0.6, 1200)) == "40.0–60.0 % (95 %), n = 1,200"
    assert with_interval(CHANGE, "points") == "-1.0 (-3.0 to 0.0)"
    assert with_interval(Estimate(0.871, 0.8, 0.93, 9), "plain") == "0.87 (0.80–0.93)"
    assert [points(value) for value in (0.012, -0.012, 0.0, -0.0004)] == ["+1.2", "-1.2", "0.0", "0.0"]


def test_what_was_not_measured_is_a_dash() -> None:
    missing = Estimate(None, 0.0, 1.0, 0)
    assert percent(None) == points(None) == with_interval(NOTHING, "percent") == "–"
    assert with_interval(missing, "points") == with_interval(missing, "plain") == "–"


@pytest.mark.parametrize(
    ("seconds", "text"), [(6, "6 s"), (72.4, "1.2 min"), (7200, "2.0 h"), (math.nan, "not finite")]
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_settings_without_a_value_are_left_out_and_nested_ones_are_named_in_full() -> None:
    settings = {"b": None, "c": ["x", 1], "a": {"inner": 0}, "d": [], "e": ""}
    assert setting_rows(settings) == [("a.inner", "0"), ("c", "x, 1")]


def test_records_are_json_by_their_fields_and_rates_have_their_value() -> None:
    assert json_value({"rates": (RATE, NOTHING), "none": None, "path": Path("a", "b")}) == {
        "rates": [
            {"value": 0.125, "count": 3, "n": 24, "low": 0.04, "high": 0.31},
            {"value": None, "count": 0, "n": 0, "low": 0.0, "high": 1.0},
        ],
        "none": None,
        "path": "a/b",
    }
    assert json_value(Estimate(None, 0.0, 1.0, 0)) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


def test_texts_stay_texts() -> None:
    assert visible("a\tb\n\u202e\x1b\ud800") == "a\tb\n" + "\ufffd" * 3
    assert code("a `b`\n\x1b") == "`a 'b' \ufffd`"
    assert escaped("<b> *x* |\n#") == r"&lt;b&gt; \*x\* \| \#"
