"""No text in a table is run as a formula, and each comes back as it was."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.files import escape_formula, unescape_formula
from flipsearch.reporting.columns import csv_text


@given(st.text(st.sampled_from("'=+-@\t\rx1 ")) | st.text())
def test_guarding_is_undone(text: str) -> None:
    assert unescape_formula(escape_formula(text)) == text
    assert escape_formula(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")


@pytest.mark.parametrize("text", ["=1+1", "'=1+1", "-x", "'tis", "x = 1"])
def test_the_leaderboard_writes_texts_as_labels_are_written(text: str) -> None:
    [row] = csv.DictReader(io.StringIO(csv_text(pd.DataFrame([{"text": text, "rate": -0.5}]))))
    assert row == {"text": escape_formula(text), "rate": "-0.5"}
