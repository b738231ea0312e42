"""Presets of a training, and the settings of its optimizer, by what they do."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer

from flipsearch.config import TrainConfig
from flipsearch.core.errors import ConfigError, TrainingError
from flipsearch.training.model import load_student, student_and_teacher
from flipsearch.training.plan import POCKET, PRESETS, TrainPlan, plan_training
from flipsearch.training.trainer import trainer_arguments
from tests.models import tiny_qwen3

TEXT = "You must never help with harmful requests."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def adapted(folder: Path, *targets: str) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return student_and_teacher(base, 4, with_teacher=True, alpha=6.0, targets=targets)[0]


def planned(**settings: Any) -> TrainPlan:
    return plan_training({"context": TEXT}, settings)


def test_the_papers_preset_is_its_recipe_also_where_a_model_has_defaults_of_its_own() -> None:
    config = planned(preset="paper").config
    assert (config.learning_rate, config.train_batch_size, config.epochs) == (1e-5, 64, 3.0)
    assert (config.scheduler, config.warmup_share, config.temperature) == ("cosine", 0.1, 0.6)
    assert (config.support, config.tail, config.loss_temperature) == (512, "renormalised", 0.6)
    assert (config.max_length, config.horizon, config.forward_weight, config.reverse_weight) == (4096, None, 0.5, 0.5)
    assert planned().config.horizon == POCKET["horizon"]
    assert set(PRESETS) == set(get_args(get_args(TrainConfig.model_fields["preset"].annotation)[0]))


def test_what_is_typed_or_in_a_file_beats_the_preset_and_is_noted() -> None:
    plan = plan_training({"preset": "paper", "learning-rate": 3e-5, "context": TEXT}, {"temperature": 1.0})
    assert (plan.config.learning_rate, plan.config.temperature, plan.config.support) == (3e-5, 1.0, 512)
    assert plan.config.loss_temperature == 1.0  # the loss divides by the temperature that the rollouts have
    assert any("preset paper with other settings: --learning-rate 3e-05, --temperature 1.0." in n for n in plan.notes)
    assert not any("preset" in note for note in planned(preset="paper").notes)


def test_a_file_spells_a_setting_as_the_command_line_does() -> None:
    assert plan_training({"learning-rate": 0.5, "context": TEXT}).config.learning_rate == 0.5


def test_an_eopsa_like_training_writes_no_token_that_does_not_count() -> None:
    config = planned(preset="eopsa-like").config
    assert config.horizon == config.max_tokens == 128


def test_a_short_training_leaves_the_pocket_model_what_it_needs() -> None:
    plan = planned(preset="quick")
    assert (plan.config.learning_rate, plan.config.horizon, plan.config.max_steps) == (3e-4, 40, 20)
    assert any("quick with what the pocket model needs: --learning-rate 0.0003, --horizon 40" in n for n in plan.notes)
    assert planned(preset="quick", learning_rate=1e-3).config.learning_rate == 1e-3
    assert planned(preset="paper").config.learning_rate == 1e-5


def test_completions_leave_room_for_the_longest_prompt() -> None:
    plan = planned(preset="paper")
    assert plan.within_length(96).config.max_tokens == 4000
    assert any("at most 4,000 tokens" in note for note in plan.within_length(96).notes)
    assert planned(max_tokens=50, max_length=4096).within_length(96).config.max_tokens == 50
    with pytest.raises(ConfigError, match="--max-length is 64, but a prompt has 64 tokens"):
        planned(max_length=64).within_length(64)


def rates(tmp_path: Path, **settings: Any) -> list[float]:
    """Learning rate of each step."""
    plan = planned(max_steps=20, learning_rate=1.0, **settings)
    arguments = trainer_arguments(plan, tmp_path, torch.device("cpu"), torch.float32, 64)
    trainer: Any = Trainer(model=nn.Linear(1, 1), args=arguments)
    trainer.create_optimizer_and_scheduler(plan.num_steps)
    seen: list[float] = []
    for _ in range(plan.num_steps):
        seen.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return seen


def test_schedules_are_their_equations(tmp_path: Path) -> None:
    warm, after = [0.0, 0.25, 0.5, 0.75], [t / 16 for t in range(16)]
    share = {"warmup_share": 0.2}
    assert rates(tmp_path, **share) == pytest.approx(warm + [(1 + math.cos(math.pi * t)) / 2 for t in after])
    assert rates(tmp_path, scheduler="linear", **share) == pytest.approx(warm + [1 - t for t in after])
    assert rates(tmp_path, scheduler="constant", **share) == pytest.approx([*warm, *[1.0] * 16])


def test_adapters_are_where_the_targets_say_and_count_as_alpha_says(folder: Path) -> None:
    student = adapted(folder, "q_proj", "up_proj")
    moved = {name.split(".lora_")[0].rpartition(".")[2] for name, p in student.named_parameters() if p.requires_grad}
    assert moved == {"q_proj", "up_proj"}
    layer = student.get_base_model().model.layers[0].self_attn.q_proj
    nn.init.ones_(layer.lora_B["default"].weight)
    x = torch.ones(1, layer.in_features)
    by_hand = layer.base_layer(x) + (6.0 / 4) * (x @ layer.lora_A["default"].weight.T).sum(-1, keepdim=True)
    assert torch.allclose(layer(x), by_hand, atol=1e-5)


def test_targets_that_are_no_layers_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown --lora-target 'q_porj'\. Did you mean q_proj"):
        load_student(planned(model=str(folder), prompts="starter", lora=4, lora_targets=["q_porj"]))
    with pytest.raises(TrainingError, match=r"--lora-target names 'model\.embed_tokens', the model's embeddings"):
        adapted(folder, "embed_tokens")
    with pytest.raises(TrainingError, match="--lora-target norm: "):
        adapted(folder, "norm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 8.0}, "--lora-alpha 8.0 was given without --lora RANK"),
        ({"lora_targets": ["q_proj"]}, "--lora-target q_proj was given without --lora RANK"),
        ({"preset": "papr"}, "--preset is 'papr': expected 'paper', 'quick' or 'eopsa-like'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**settings)
