"""The folders of a training, its log, and whether it fits into memory."""

import json
from pathlib import Path

import pytest
import torch

from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError
from flipsearch.training import arguments as memory
from flipsearch.training.arguments import check_memory, count_parameters
from flipsearch.training.checkpoint import STATE_FILE, CheckpointFolder
from flipsearch.training.heads import completion_hidden, trainable
from flipsearch.training.log import read_log
from flipsearch.training.rows import lay_out
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def state(place: CheckpointFolder, step: int, text: str | None) -> Path:
    path = place.partial / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if text is not None:
        (path / STATE_FILE).write_text(text)
    return path


def test_the_newest_whole_state_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    place = CheckpointFolder(tmp_path / "mine")
    assert place.last_state() is None
    state(place, 5, "{}")
    tenth = state(place, 10, "{}")
    state(place, 15, '{"global_st')
    state(place, 20, None)
    assert place.last_state() == tenth


def test_a_resume_has_the_same_settings(tmp_path: Path) -> None:
    for _ in range(2):
        with CheckpointFolder(tmp_path / "mine") as place:
            place.start({"seed": 1, "model_id": "a"}, resume=True)
    with CheckpointFolder(tmp_path / "mine") as place, pytest.raises(TrainingError, match="model_id = 'a', got 'b'"):
        place.start({"seed": 1, "model_id": "b"}, resume=True)


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
        with CheckpointFolder(tmp_path / "mine") as place:
            place.start({"seed": 1}, resume=False)
            if has_state:
                state(place, 1, "{}")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "mine.partial").exists() == has_state


def test_a_log_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(read_log(path)) == []
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert list(read_log(path)) == [{"step": 1, "loss": 0.5}]


def test_parameters_are_counted_from_the_headers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert count_parameters(folder) == sum(p.numel() for p in model.parameters())


def test_what_cannot_fit_is_told_before_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = TrainConfig(model="mine", context=("x",)), torch.device("cpu")
    num = count_parameters(folder)
    monkeypatch.setattr(memory, "memory_bytes", lambda: 20 * num)
    check_memory(folder, config, cpu, torch.float32)
    monkeypatch.setattr(memory, "memory_bytes", lambda: 20 * num - 1)
    with pytest.raises(TrainingError, match="--lora 16"):
        check_memory(folder, config, cpu, torch.float32)
    check_memory(folder, config.model_copy(update={"lora": 8}), cpu, torch.float32)


def test_with_adapters_the_teacher_is_the_model_as_it_was(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layout = lay_out([(5, 6, 7)], [(8, 9)])
    before = completion_hidden(base, layout)
    student, as_teacher = trainable(base, 4, with_teacher=True)
    student.train()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert not torch.allclose(completion_hidden(student, layout), before)
    with as_teacher() as teacher:
        assert not teacher.training
        assert torch.equal(completion_hidden(teacher, layout), before)
    assert student.training
    assert {name.rpartition(".")[0].split(".")[-2] for name, p in student.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_the_record_of_a_start_is_plain_json(tmp_path: Path) -> None:
    place = CheckpointFolder(tmp_path / "mine")
    place.start({"seed": 1}, resume=True)
    assert json.loads((place.partial / "started.json").read_text()) == {"seed": 1}
