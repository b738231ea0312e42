"""How much of a GPU's memory vLLM reserves, seen by a stub that records its options."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flipsearch.backends import vllm
from flipsearch.backends.transformers import TokenScorerConfig
from flipsearch.backends.vllm import VllmEngine
from flipsearch.core.errors import BackendError, ConfigError
from tests.models import tiny_qwen3

EngineOptions = list[dict[str, Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    """The options of each engine that is started, on a GPU."""
    recorded: EngineOptions = []

    def start(**options: Any) -> Any:
        recorded.append(options)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=512)))

    monkeypatch.setattr(vllm, "_import_vllm", lambda: SimpleNamespace(LLM=start))
    monkeypatch.setattr(vllm, "choose_device", lambda device: torch.device("cuda"))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: object() if name == "vllm" else real(name, *more)
    )
    return recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def test_two_engines_reserve_together_what_one_alone_would(started: EngineOptions, folder: Path) -> None:
    VllmEngine(folder, memory_share=0.7)
    TokenScorerConfig(str(folder), "vllm", memory_share=0.3).load()
    shares = [options["gpu_memory_utilization"] for options in started]
    assert shares == pytest.approx([0.63, 0.27])
    assert sum(shares) == pytest.approx(vllm.GPU_MEMORY)


def test_an_engine_alone_reserves_what_vllm_does_by_default(started: EngineOptions, folder: Path) -> None:
    VllmEngine(folder)
    TokenScorerConfig(str(folder), "vllm").load()
    TokenScorerConfig(str(folder), "vllm", memory_share=1.0).load()
    assert not any("gpu_memory_utilization" in options for options in started)


def test_an_engine_without_memory_is_not_started(
    started: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=r"nothing is left for the model in .*memory_share=0\.3") as caught:
        VllmEngine(folder, memory_share=0.0)
    assert "\n" not in str(caught.value)
    assert started == []
    monkeypatch.setattr(vllm, "choose_device", lambda device: torch.device("cpu"))
    VllmEngine(folder, memory_share=0.0)
    assert "gpu_memory_utilization" not in started[0]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(started: EngineOptions, folder: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=rf"memory_share is {share}, expected more than 0 and at most 1\."):
        TokenScorerConfig(str(folder), "vllm", memory_share=share).check()


def test_a_share_on_another_backend_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="memory_share is for backend vllm, got it for backend transformers"):
        TokenScorerConfig(str(folder), memory_share=0.3).check()


def test_the_share_is_not_part_of_the_identity(started: EngineOptions, folder: Path) -> None:
    assert (
        TokenScorerConfig(str(folder), "vllm", memory_share=0.3).identity()
        == TokenScorerConfig(str(folder), "vllm").identity()
    )
