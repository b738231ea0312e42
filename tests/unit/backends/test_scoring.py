"""A model that is only read: the same on raw ids as plain transformers, and bad options show before anything loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Llama4VisionConfig,
)

from flipsearch.backends.decoding import Ids
from flipsearch.backends.loading import quiet
from flipsearch.backends.scoring import ScorerConfig
from flipsearch.core.errors import BackendError, ConfigError, FlipsearchError
from tests.models import tiny_qwen3, tiny_tokenizer

PROMPTS: list[Ids] = [list(range(20, 20 + length)) for length in (90, 7, 40, 41, 3)]
OPENINGS: list[Ids] = [[5], [6, 7], [5], [9, 10, 11], [12]]


def llama4(folder: Path) -> Path:
    """A guard of Llama 4's kind: text weights inside a model that sees images."""
    tokenizer = tiny_tokenizer()
    text = Llama4TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, moe_layers=[],
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=1,
        max_position_embeddings=512, attention_chunk_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = Llama4VisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=14,
        vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    return saved(Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)), folder)


def gemma2(folder: Path) -> Path:
    """A guard of ShieldGemma's kind: sliding windows and a cap on attention that is felt."""
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8, query_pre_attn_scalar=1,
        initializer_range=0.8, attn_logit_softcapping=2.0, max_position_embeddings=512,
    )  # fmt: skip
    return saved(Gemma2ForCausalLM(config), folder)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def plainly(folder: Path, prompt: Ids, prefill: Ids) -> list[float]:
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *prefill]])).logits[0, len(prompt) - 1 : -1]
    return [float(row[id]) for row, id in zip(logits.log_softmax(-1), prefill, strict=True)]


@pytest.mark.parametrize("build", [tiny_qwen3, gemma2, llama4])
def test_readings_are_those_of_plain_transformers(build: Callable[[Path], Path], tmp_path: Path) -> None:
    with quiet():
        folder = build(tmp_path)
    scorer = ScorerConfig(str(folder)).load()
    assert scorer.max_tokens == 512
    for groups in ([0] * 5, list(range(5))):
        for prompt, prefill, reading in zip(PROMPTS, OPENINGS, scorer.score(PROMPTS, OPENINGS, groups), strict=True):
            assert reading is not None
            assert reading.log_probs == pytest.approx(plainly(folder, prompt, prefill), abs=1e-4)
    scorer.close()


def test_few_rows_at_once_change_nothing(tmp_path: Path) -> None:
    folder = str(tiny_qwen3(tmp_path))
    together = ScorerConfig(folder).load().score(PROMPTS, OPENINGS, [0] * 5)
    one_by_one = ScorerConfig(folder, batch_size=1).load().score(PROMPTS, OPENINGS, [0] * 5)
    for one, other in zip(together, one_by_one, strict=True):
        assert one is not None
        assert other is not None
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"backend": "vlm"}, ConfigError, "unknown backend 'vlm'. Did you mean vllm?"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, expected at least 1"),
        ({"dtype": "float8"}, ConfigError, "dtype is 'float8', expected auto"),
        ({"device": "tpu"}, ConfigError, "device 'tpu' cannot be used here"),
        ({"backend": "vllm", "device": "cpu"}, ConfigError, "device is not for backend vllm"),
        ({"backend": "vllm", "batch_size": 4}, ConfigError, "batch_size is not for backend vllm"),
        ({"model": "no such model"}, BackendError, "unknown model 'no such model'"),
    ],
)
def test_bad_options_show_before_anything_loads(
    options: dict[str, Any], error: type[FlipsearchError], told: str, tmp_path: Path
) -> None:
    config = ScorerConfig(**{"model": str(tiny_qwen3(tmp_path)), **options})
    with pytest.raises(error) as caught:
        config.check()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_room_on_vllm_is_part_of_the_identity_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (ScorerConfig(str(tiny_qwen3(tmp_path)), backend=one) for one in ("transformers", "vllm"))
    before = here.identity(), there.identity()
    monkeypatch.setattr("flipsearch.backends.scoring.VLLM_TOKENS", 4096)
    assert here.identity() == before[0]
    assert there.identity() != before[1]


def test_vllm_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="backend vllm is not installed: pip install"):
        ScorerConfig(str(tiny_qwen3(tmp_path)), backend="vllm").check()


def test_weights_that_are_not_all_there_are_not_made_up(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"1 weights are missing .* the model would be random in part") as caught:
        ScorerConfig(str(folder)).load()
    assert "up_proj" in str(caught.value)
    assert "\n" not in str(caught.value)
