"""Files of finished work: what is written is read back, and anything else is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from flipsearch.core.errors import StudyError
from flipsearch.core.measurements import json_value
from flipsearch.core.trainings import Scorecard
from flipsearch.reporting.files import read_study, read_training, write_scorecard, write_training
from tests.finished_training import RUN, a_log
from tests.unit.reporting.test_scorecard_table import ALONE, CARD


def test_a_scorecard_is_read_back(tmp_path: Path) -> None:
    for card in (CARD, ALONE):
        write_scorecard(card, tmp_path / "a" / "scorecard.json")
        assert TypeAdapter(Scorecard).validate_json((tmp_path / "a" / "scorecard.json").read_bytes()) == card
        assert json.loads((tmp_path / "a" / "scorecard.json").read_text()) == json_value(card)


def test_a_training_is_read_back(tmp_path: Path) -> None:
    write_training(RUN, a_log(2), tmp_path)
    assert read_training(tmp_path) == RUN
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "training.html", "README.md"}


@pytest.mark.parametrize(
    ("read", "name", "what"),
    [
        (read_study, "study.json.gz", "finished study"),
        (read_training, "training.json", "training"),
    ],
)
def test_a_missing_file_or_one_of_another_shape_is_one_line(
    read: Callable[[Path], object], name: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=rf"no {what} at '.*{name}': .*; run .* first\."):
        read(tmp_path)
    (tmp_path / name).write_text('{"format": 2, "model": 3}')
    with pytest.raises(StudyError, match=rf"{name}: no {what} of this version: .*; run .* again\."):
        read(tmp_path)
