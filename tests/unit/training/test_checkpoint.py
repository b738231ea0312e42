"""The folders of a training: what is resumed, what is refused, what is left behind."""

import json
from pathlib import Path

import pytest

from flipsearch.core.errors import TrainingError
from flipsearch.core.trainings import TRAINING_FORMAT
from flipsearch.training.checkpoint import STARTED_FILE, STATE_FILE, CheckpointFolder


def state(folder: CheckpointFolder, step: int, text: str | None) -> Path:
    path = folder.partial / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if text is not None:
        (path / STATE_FILE).write_text(text)
    return path


def test_the_newest_complete_state_is_the_one_to_resume_from(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "mine")
    assert folder.last_state() is None
    state(folder, 5, '{"global_step": 5}')
    tenth = state(folder, 10, '{"global_step": 10}')
    state(folder, 15, '{"global_st')
    state(folder, 20, None)
    state(folder, 25, "5")
    assert folder.last_state() == tenth
    for copy in ("checkpoint-10-backup", "checkpoint-3x", "checkpoint-12 (copy)"):
        (folder.partial / copy).mkdir()
    assert folder.last_state() == tenth


def test_a_resume_has_the_same_settings(tmp_path: Path) -> None:
    for _ in range(2):
        with CheckpointFolder(tmp_path / "mine") as folder:
            folder.start({"seed": 1, "model_id": "a"}, resume=True)
    with (
        CheckpointFolder(tmp_path / "mine") as folder,
        pytest.raises(TrainingError, match=r"model_id a, and .* model_id b; resume"),
    ):
        folder.start({"seed": 1, "model_id": "b"}, resume=True)


def test_of_two_resumes_one_waits(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path / "mine") as first, CheckpointFolder(tmp_path / "mine") as second:
        first.start({"seed": 1}, resume=False)
        with pytest.raises(TrainingError, match="another training works in"):
            second.start({"seed": 1}, resume=True)
        assert first.partial.is_dir()
    with CheckpointFolder(tmp_path / "mine") as third:
        third.start({"seed": 1}, resume=True)


@pytest.mark.parametrize("has_state", [False, True])
def test_what_fails_before_the_first_step_leaves_nothing(has_state: bool, tmp_path: Path) -> None:
    def fail() -> None:
        with CheckpointFolder(tmp_path / "mine") as folder:
            folder.start({"seed": 1}, resume=False)
            if has_state:
                state(folder, 1, "{}")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "mine.partial").exists() == has_state


def test_the_record_of_a_start_is_plain_json(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "mine")
    folder.start({"seed": 1}, resume=True)
    assert json.loads((folder.partial / "started.json").read_text()) == {"format": TRAINING_FORMAT, "seed": 1}


@pytest.mark.parametrize("before", [{"seed": 1}, {"format": 99, "seed": 1}, []])
def test_a_start_of_another_version_is_not_resumed(before: object, tmp_path: Path) -> None:
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / STARTED_FILE).write_text(json.dumps(before))
    expected = rf"started.json.*expected {TRAINING_FORMAT}"
    with CheckpointFolder(tmp_path / "mine") as folder, pytest.raises(TrainingError, match=expected):
        folder.start({"seed": 1}, resume=True)
