"""Events: a line each, appended; a torn line spoils itself alone."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from flipsearch.core.errors import StudyError
from flipsearch.core.progress import Events, silent


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_each_event_is_one_line_with_its_time(tmp_path: Path) -> None:
    emit = Events(tmp_path / "events.jsonl")
    emit("pruned", context_id="a", evidence=31.5)
    emit("done", text="two\nlines \x1b[31m\u2028")
    first, second = map(json.loads, lines_of(emit.path))
    assert (first["event"], first["context_id"], first["evidence"]) == ("pruned", "a", 31.5)
    assert datetime.fromisoformat(first["time"]).utcoffset() is not None
    assert second["text"] == "two\nlines \x1b[31m\u2028"


def test_a_torn_line_does_not_harm_the_next_launch(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path)("launch", number=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    for number in (2, 3):
        Events(path)("launch", number=number)
    first, torn, *others = lines_of(path)
    assert [json.loads(line)["number"] for line in (first, *others)] == [1, 2, 3]
    assert torn == first[:30]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(StudyError, match=r"cannot write .*events\.jsonl.*Is a directory"):
        Events(tmp_path / "events.jsonl")("launch")


def test_silence_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent("launch", anything=object())
    assert list(tmp_path.iterdir()) == []
