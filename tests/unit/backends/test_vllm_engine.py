"""What of a GPU's memory vLLM is told to take, seen by an engine that only takes notes."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flipsearch.backends import vllm
from flipsearch.backends.scoring import ScorerConfig
from flipsearch.backends.vllm import VllmEngine
from flipsearch.core.errors import BackendError, ConfigError
from tests.models import tiny_qwen3

Told = list[dict[str, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """The options of each engine that is started, on a GPU."""
    found: Told = []

    def start(**options: Any) -> Any:
        found.append(options)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=512)))

    monkeypatch.setattr(vllm, "_import_vllm", lambda: SimpleNamespace(LLM=start))
    monkeypatch.setattr(vllm, "choose_device", lambda device: torch.device("cuda"))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: object() if name == "vllm" else real(name, *more)
    )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def test_two_engines_take_together_what_engines_may_take(told: Told, folder: Path) -> None:
    VllmEngine(folder, memory_share=0.7)
    ScorerConfig(str(folder), "vllm", memory_share=0.3).load()
    shares = [options["gpu_memory_utilization"] for options in told]
    assert shares == pytest.approx([0.63, 0.27])
    assert sum(shares) == pytest.approx(vllm.GPU_MEMORY)


def test_one_alone_takes_what_vllm_takes(told: Told, folder: Path) -> None:
    VllmEngine(folder)
    ScorerConfig(str(folder), "vllm").load()
    ScorerConfig(str(folder), "vllm", memory_share=1.0).load()
    assert not any("gpu_memory_utilization" in options for options in told)


def test_where_nothing_is_left_nothing_is_started(told: Told, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"nothing is left for the model in .*memory_share=0\.3") as caught:
        VllmEngine(folder, memory_share=0.0)
    assert "\n" not in str(caught.value)
    assert told == []
    monkeypatch.setattr(vllm, "choose_device", lambda device: torch.device("cpu"))
    VllmEngine(folder, memory_share=0.0)
    assert "gpu_memory_utilization" not in told[0]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_told(told: Told, folder: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=rf"memory_share is {share}, expected more than 0 and at most 1\."):
        ScorerConfig(str(folder), "vllm", memory_share=share).check()


def test_a_share_without_an_engine_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="memory_share is for backend vllm, got it for backend transformers"):
        ScorerConfig(str(folder), memory_share=0.3).check()


def test_a_share_changes_no_reading(told: Told, folder: Path) -> None:
    assert (
        ScorerConfig(str(folder), "vllm", memory_share=0.3).identity() == ScorerConfig(str(folder), "vllm").identity()
    )
