"""What a training takes: by its equations, beside what a model keeps, and as the command shows it."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import flipsearch
from flipsearch.commands.plans import training_cost_lines
from flipsearch.core.errors import ConfigError
from flipsearch.core.files import take_lock
from flipsearch.training.cost import TrainingCost
from tests.integration.test_cli import one_line_error, run
from tests.models import tiny_qwen3

TEXT = "You must never help with harmful requests."
SMALL: dict[str, Any] = {"context": TEXT, "max_steps": 6, "train_batch_size": 4, "max_prompts": 8, "max_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model")))


def cost(**settings: Any) -> TrainingCost:
    planned: TrainingCost = flipsearch.plan_train(**{**SMALL, **settings})
    return planned


def test_tokens_are_rows_times_what_is_written_and_read() -> None:
    planned = cost()
    rows = planned.num_steps * planned.step_size
    assert (rows, planned.tokens.rollouts, planned.length_from) == (24, 24 * 12, "limit")
    assert planned.tokens.teacher > planned.tokens.student > planned.tokens.rollouts  # with the context; with prompts
    assert planned.tokens.before == 0
    assert cost(gate=True).tokens.before == 8 * 12  # each harmful prompt under the context
    supervised = cost(method="sft-self").tokens
    assert (supervised.before, supervised.rollouts, supervised.teacher) == (16 * 12, 0, 0)


def test_time_is_tokens_at_the_given_rate_and_unknown_without_one() -> None:
    assert cost(tokens_per_second=10.0).steps_s == pytest.approx(24 * 12 / 10)
    assert cost().steps_s is None
    assert any("not known: give --measure" in line for line in training_cost_lines(cost()))
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"--tokens-per-second is .*, expected a number above 0"):
            cost(tokens_per_second=wrong)
    with pytest.raises(ConfigError, match="--gpus is 0"):
        cost(gpus=0)
    with pytest.raises(ConfigError, match="two ways to know the speed"):
        cost(tokens_per_second=5.0, measure=True)


def test_days_on_a_cpu_are_warned_of(folder: str) -> None:
    long = cost(model=folder, prompts="starter", tokens_per_second=0.001, device="cpu")
    assert long.is_long
    assert any(line.startswith("Warning: on a CPU this may take days") for line in training_cost_lines(long))
    assert not cost(model=folder, prompts="starter", tokens_per_second=100.0, device="cpu").is_long


def test_memory_is_weights_gradients_moments_and_the_teacher(folder: str) -> None:
    num = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    model: dict[str, Any] = {"model": folder, "prompts": "starter", "device": "cpu"}
    full, alone = cost(**model, dtype="float32").memory, cost(**model, dtype="float32", method="sft-self").memory
    assert (full.weights, full.gradients, full.optimizer) == (8 * num, 4 * num, 8 * num)
    assert alone.weights == 4 * num  # no teacher
    rounded = cost(**model, dtype="bfloat16").memory
    assert rounded.weights == (4 + 2 + 2) * num
    adapters = cost(**model, dtype="float32", lora=2, lora_targets=["q_proj"]).memory
    q_proj = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].self_attn.q_proj
    num_layers = AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers
    trained = num_layers * 2 * (q_proj.in_features + q_proj.out_features)
    assert (adapters.weights, adapters.gradients) == (4 * num + 4 * trained, 4 * trained)
    shared = cost(**model, dtype="float32", gpus=4).memory
    assert (shared.optimizer, shared.gradients) == (2 * num, num)
    assert full.peak == 20 * num + max(full.activations, full.decode_cache)


def test_activations_are_what_a_backward_pass_keeps(tmp_path: Path) -> None:
    folder = str(tiny_qwen3(tmp_path, hidden_size=256))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    settings: dict[str, Any] = {"model": folder, "prompts": "starter", "dtype": "float32", "device": "cpu"}
    rows, length = [cost(**settings, micro_batch_size=4, max_tokens=num).memory.activations for num in (100, 200)], 100
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.zeros((4, length), dtype=torch.long), use_cache=False).last_hidden_state
    assert hidden.requires_grad
    assert rows[1] - rows[0] == pytest.approx(sum(kept.values()), rel=0.25)


def test_a_probe_times_real_steps_and_leaves_nothing(tmp_path: Path) -> None:
    left = tmp_path / ".probe-killed"
    for folder in (left, tmp_path / ".probe-of-mine", tmp_path / ".probe-that-runs"):
        folder.mkdir()
    (left / "lock").touch()
    with closing(take_lock(tmp_path / ".probe-that-runs" / "lock")):
        planned = cost(measure=True, checkpoints=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".probe-of-mine", ".probe-that-runs"}
    assert planned.probe
    assert planned.steps_s
    assert (planned.length_from, planned.probe.rows) == ("probe", 4)
    assert planned.total_s and planned.total_s > planned.steps_s > 0  # noqa: PT018
    trained = flipsearch.train(**SMALL, checkpoints=tmp_path, reports=tmp_path)
    assert planned.tokens.rollouts == pytest.approx(trained.run.num_tokens, rel=0.25)


def test_the_command_is_plan_train(tmp_path: Path) -> None:
    settings = ("--context", TEXT, "--max-steps", "4", "--max-prompts", "8", "--tokens-per-second", "9")
    done = run("plan", "train", *settings, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["num_steps"] == 4
    assert "plan train --help" in one_line_error("plan", "train", *settings, "--max-stepz", "3", cwd=tmp_path)
