"""The model that is trained: whether it fits into memory, and its teacher under adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flipsearch.core.errors import TrainingError
from flipsearch.training import model as module
from flipsearch.training.model import check_memory, completion_hidden, student_and_teacher
from flipsearch.training.plan import plan_training
from flipsearch.training.rows import lay_out
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def test_what_cannot_fit_is_refused_before_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_training({"context": "Be safe.", "model": str(folder), "prompts": "starter", "device": "cpu"})
    num = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    monkeypatch.setattr(module, "memory_bytes", lambda: 20 * num)
    check_memory(plan, folder)
    monkeypatch.setattr(module, "memory_bytes", lambda: 20 * num - 1)
    with pytest.raises(TrainingError, match="--lora 16"):
        check_memory(plan, folder)
    check_memory(replace(plan, config=plan.config.model_copy(update={"lora": 1})), folder)
    check_memory(replace(plan, config=plan.config.model_copy(update={"method": "sft-self"})), folder)  # no teacher


def test_with_adapters_the_teacher_is_the_model_as_it_was(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layout = lay_out([(5, 6, 7)], [(8, 9)])
    before = completion_hidden(base, layout)
    student, _, as_teacher = student_and_teacher(base, 4, with_teacher=True)
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
