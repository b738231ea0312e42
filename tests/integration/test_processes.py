"""`flipsearch train` in two processes, as a launcher starts them: they learn what one process would have learnt."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import flipsearch
from flipsearch.backends.models import model_source

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
TEXT = "You must never help with harmful requests. Think about what the person wants, and who could get hurt."
COMMAND = ("train", "--context", TEXT, "--max-steps", "3", "--max-prompts", "8", "--device", "cpu")
BATCH = ("--train-batch-size", "8", "--micro-batch-size", "2")
UNLOGGED = ("--sample-prompts", "0")
SECONDS = 300

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


def in_processes(
    folder: Path, *more: str, module: str = "flipsearch", **environment: str
) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", module, *COMMAND, *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    settings: dict[str, Any] = {
        "max_steps": 3, "max_prompts": 8, "train_batch_size": 8, "micro_batch_size": 2, "device": "cpu",
        "checkpoints": folder / "checkpoints", "reports": folder / "reports",
    }  # fmt: skip
    return flipsearch.train(context=TEXT, **settings).folder


def assert_same_training(alone: Path, together: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (alone, together))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=2e-5)
    for line_alone, line_together in zip(*map(log_of, (alone, together)), strict=True):
        for key in ("loss", "num_tokens", "num_rollouts", "num_harmful", "length_mean_benign", "divergence_harmful"):
            assert abs(line_alone[key] - line_together[key]) <= 1e-4 * abs(line_alone[key]), key


def test_two_processes_learn_what_one_does(alone: Path, tmp_path: Path) -> None:
    done = in_processes(tmp_path, "--name", "mine", *BATCH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps in") == 1  # the main process alone prints
    assert_same_training(alone, tmp_path / "checkpoints" / "mine")


def test_processes_that_share_the_weights_in_shards_learn_the_same_though_they_are_killed(
    alone: Path, tmp_path: Path
) -> None:
    command = ("--name", "mine", *BATCH, "--save-steps", "1")
    killed = in_processes(tmp_path, *command, module="tests.fsdp_on_cpu", STOP_AFTER="2", **SHARDED)
    assert killed.returncode != 0
    assert (tmp_path / "checkpoints" / "mine.partial" / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir()
    done = in_processes(tmp_path, *command, "--resume", module="tests.fsdp_on_cpu", **SHARDED)
    assert done.returncode == 0, done.stderr
    assert_same_training(alone, tmp_path / "checkpoints" / "mine")
    config = json.loads((tmp_path / "checkpoints" / "mine" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]


def test_in_bfloat16_an_empty_context_teaches_nothing_and_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    command = (
        "--name",
        "mine",
        *BATCH,
        *UNLOGGED,
        "--dtype",
        "bfloat16",
        "--context-control",
        "empty",
        "--warmup-share",
        "0",
    )
    sharded = {"module": "tests.fsdp_on_cpu", **SHARDED}
    stopped = in_processes(tmp_path, *command, "--save-steps", "0", SIGNAL_AFTER="2", **sharded)
    assert stopped.stderr.count("stopped by SIGUSR1 after 2 of 3 steps") == 1, stopped.stderr
    assert re.search(r"exitcode *: 75", stopped.stderr)  # the launcher's own is 1
    done = in_processes(tmp_path, *command, "--resume", **sharded)
    assert done.returncode == 0, done.stderr
    trained = tmp_path / "checkpoints" / "mine"
    assert [(line["loss"], line["grad_norm"]) for line in log_of(trained)] == [(0.0, 0.0)] * 3
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (model_source("pocket"), trained))
    assert all(torch.equal(after[name].bfloat16(), before[name].bfloat16()) for name in before)


def test_shards_on_a_cpu_are_refused(tmp_path: Path) -> None:
    done = in_processes(tmp_path, "--name", "mine", *BATCH, **SHARDED)
    assert done.returncode != 0
    assert "FSDP was requested, but accelerate shards on GPUs alone" in done.stderr
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_stops_the_main_process_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = in_processes(tmp_path, *BATCH, "--checkpoints", "file/in")
    assert done.stderr.count("give other --checkpoints") == 1
    assert "unexpected" not in done.stderr


def test_answers_are_generated_once_and_learnt_by_all(tmp_path: Path) -> None:
    batch = ("--train-batch-size", "4", "--micro-batch-size", "2")
    done = in_processes(tmp_path, "--name", "self", "--method", "sft-self", *batch, *UNLOGGED)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "checkpoints" / "self" / "training.json").read_text())
    assert record["num_steps"] == 3
    assert record["num_rollouts"] == 12  # 2 processes x 2 rows x 3 steps
    assert not (tmp_path / "checkpoints" / "self.partial").exists()


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
