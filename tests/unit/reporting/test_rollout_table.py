"""The ledger as a table: what goes in comes out in every format, hostile text does nothing, half a file never stays."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flipsearch.core.errors import ConfigError, LedgerError, StudyError
from flipsearch.core.files import printable
from flipsearch.core.records import Label, Verdict
from flipsearch.ledger import CHUNK, Ledger
from flipsearch.reporting.files import write_study
from flipsearch.reporting.formats import export_file, export_lines, study_beside
from tests.labelled import mistaken_study
from tests.unit.ledger.test_ledger import SAMPLING, rollout

HOSTILE = '=HYPERLINK(1)\n\x1b[31m\u2028,"\u00e9\rand on'
BARE = "one\rtwo"
"""A lone carriage return, which nothing else forces into quotes."""
ROLLOUTS = [
    rollout(1, completion=HOSTILE),
    rollout(2, context_id="c" * 16, completion=BARE, completion_ids=()),
    rollout(3),
]
NUM_MORE = CHUNK


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        opened.save_rollouts([*ROLLOUTS, *(rollout(number) for number in range(10, 10 + NUM_MORE))])
        first, second = ROLLOUTS[0].rollout_id, ROLLOUTS[1].rollout_id
        opened.save_verdicts(
            "=one", [(first, Verdict(Label.UNSAFE, 0.9, 0.1, "+complies")), (second, Verdict(Label.SAFE, 0.0))]
        )
        opened.save_verdicts("two", [(first, Verdict(Label.UNSCORED, reason="pruned"))])
        yield opened


def lines_of(text: str) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["rollout_id"]: row for row in rows}


def test_lines_hold_every_field_and_verdict(ledger: Ledger) -> None:
    stream = io.StringIO()
    done = export_lines(ledger, stream)
    assert done.as_dict() == {"path": None, "rows": 3 + NUM_MORE, "judges": ["=one", "two"], "has_texts": False}
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()
    rows = lines_of(stream.getvalue())
    assert len(rows) == 3 + NUM_MORE
    row = rows[ROLLOUTS[0].rollout_id]
    assert (row["completion"], row["completion_ids"], row["seed"]) == (HOSTILE, [1, 2**32 - 1], SAMPLING.seed)
    assert row["verdicts"]["=one"] == {
        "label": "unsafe", "p_unsafe": 0.9, "p_refusal": 0.1, "reason": "+complies", "label_mass": None,
        "kind": None,
    }  # fmt: skip
    assert row["verdicts"]["two"]["label"] == "unscored"
    assert rows[ROLLOUTS[2].rollout_id]["verdicts"] == {}


def test_a_file_of_lines_is_what_the_stream_gets(ledger: Ledger, tmp_path: Path) -> None:
    stream = io.StringIO()
    export_lines(ledger, stream)
    export_file(ledger, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == stream.getvalue()


def test_csv_cells_are_inert(ledger: Ledger, tmp_path: Path) -> None:
    export_file(ledger, tmp_path / "new" / "out.csv")
    with (tmp_path / "new" / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["rollout_id"]: row for row in csv.DictReader(file)}
    row = rows[ROLLOUTS[0].rollout_id]
    assert len(rows) == 3 + NUM_MORE
    assert row["completion"] == "'" + printable(HOSTILE.replace("\r", "\n"))
    assert row["reason (=one)"] == "'+complies"
    assert rows[ROLLOUTS[1].rollout_id]["completion"] == BARE.replace("\r", "\n")
    assert (row["label (=one)"], row["label (two)"], row["p_unsafe (two)"]) == ("unsafe", "unscored", "")
    assert row["completion_ids"] == f"1 {2**32 - 1}"


def test_parquet_keeps_types(ledger: Ledger, tmp_path: Path) -> None:
    export_file(ledger, tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet").set_index("rollout_id")
    assert len(table) == 3 + NUM_MORE
    row = table.loc[ROLLOUTS[0].rollout_id]
    assert (row["completion"], list(row["completion_ids"]), row["p_unsafe (=one)"]) == (HOSTILE, [1, 2**32 - 1], 0.9)
    assert bool(table["label (two)"].isna()[ROLLOUTS[2].rollout_id])


def test_with_its_study_every_row_can_be_read_alone(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Ledger(tmp_path / "ledger.db") as opened:
        study = mistaken_study(opened)
        write_study(study, tmp_path)
        beside = study_beside(tmp_path / "ledger.db")
        assert export_lines(opened, stream, beside).has_texts
        export_file(opened, tmp_path / "out.parquet", beside)
        export_file(opened, tmp_path / "out.csv", beside)
    rows = lines_of(stream.getvalue()).values()
    assert {row["prompt"] for row in rows} == {prompt.text for prompt in study.prompts}
    assert {row["prompt_split"] for row in rows} == {"search", "confirm"}
    assert {row["context"] for row in rows} == {
        None,
        *(trial.context.text for trial in study.trials if trial.context.text),
    }
    assert {row["context_placement"] for row in rows} == {None, "before", "system"}
    for table in (pd.read_parquet(tmp_path / "out.parquet"), pd.read_csv(tmp_path / "out.csv")):
        assert set(table["prompt"]) == {prompt.text for prompt in study.prompts}


def test_an_ending_that_is_no_format(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to is '.*out\.txt', expected .*\.jsonl, \.csv, \.parquet"):
        export_file(ledger, tmp_path / "out.txt")


def test_what_cannot_be_written_or_read_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot write"):
        export_file(ledger, tmp_path / "file" / "out.csv")
    with ledger._writing() as connection:
        connection.exec_driver_sql("UPDATE rollouts SET completion_ids = x'01'")
    with pytest.raises(LedgerError, match=r"is not sound: .*ledger check says more"):
        export_file(ledger, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir() if "out.csv" in path.name] == []
