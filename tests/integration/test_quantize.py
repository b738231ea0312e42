"""`flipsearch train --lora R --quantize 4bit|8bit`: rounded weights that student, teacher and checkpoint share."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.pytorch_utils import Conv1D

import flipsearch
from flipsearch.backends import loading, quantized
from flipsearch.core.errors import BackendError, ConfigError, FlipsearchError
from flipsearch.core.settings import Quantize
from flipsearch.evaluation import plan as evaluation_plan
from flipsearch.training import checks
from flipsearch.training.checkpoint import CheckpointFolder
from flipsearch.training.model import check_memory, num_parameters, num_quantized, step_memory
from flipsearch.training.plan import plan_training
from tests.models import tiny_qwen3, tiny_tokenizer

TEXT = "You must never help with harmful requests. Think about what the person wants, and who could get hurt."
SMALL: dict[str, Any] = {
    "context": TEXT, "prompts": "starter", "lora": 4, "max_steps": 3, "train_batch_size": 4, "max_prompts": 8,
    "max_tokens": 8, "warmup_share": 0, "learning_rate": 1e-2, "sample_prompts": 0,
}  # fmt: skip
IDS = torch.arange(1, 9)[None]
BITS: tuple[Quantize, ...] = ("4bit", "8bit")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its layers keep their weights transposed, and have biases."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_tokenizer()
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    no_dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    GPT2LMHeadModel(GPT2Config(**size, **no_dropout, eos_token_id=2, bos_token_id=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(folder: Path, model: Path, **settings: Any) -> flipsearch.TrainingResult:
    places = {"checkpoints": folder / "checkpoints", "reports": folder / "reports"}
    return flipsearch.train(**{**SMALL, **places, "model": str(model), **settings})


def load(folder: Path, quantize: Quantize | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return loading.load_model(folder, torch.device("cpu"), dtype, quantize)


def needs_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_rounded_model_is_the_model_that_has_its_dequantised_weights(
    family: str, quantize: Quantize, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    needs_bitsandbytes()
    folder = request.getfixturevalue(family)
    rounded, plain = load(folder, quantize, dtype), load(folder, None, dtype)
    names = dict(quantized.quantized_layers(rounded))
    kinds = (nn.Linear, Conv1D)
    assert names.keys() == {name for name, x in plain.named_modules() if isinstance(x, kinds)} - {"lm_head"}
    for name, layer in names.items():
        own, weights = plain.get_submodule(name), quantized.dequantized(layer).to(dtype)
        own.weight = nn.Parameter(weights.T.contiguous() if family == "gpt2" else weights)
    with torch.no_grad():
        expected = plain(IDS).logits
        close: dict[str, Any] = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-2}
        torch.testing.assert_close(rounded(IDS).logits, expected, **close)
        # What was run to decode is run to train next, and the other way round.
        decoded = rounded.eval()(IDS).logits
        assert torch.equal(rounded.train()(IDS).logits, decoded)
    gradients = []
    for model in (rounded, plain):
        embedded = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        model(inputs_embeds=embedded).logits.float().square().sum().backward()
        assert embedded.grad is not None
        gradients.append(embedded.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4 if dtype == torch.float32 else 0.1, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", BITS)
def test_without_a_context_nothing_is_learnt(quantize: str, dtype: str, qwen3: Path, tmp_path: Path) -> None:
    needs_bitsandbytes()
    done = train(tmp_path, qwen3, quantize=quantize, dtype=dtype, control="empty")
    assert [(line["loss"], line["grad_norm"]) for line in done.log] == [(0.0, 0.0)] * 3
    assert not any("rounded to float32" in note for note in done.run.notes)  # which its base is stored in
    adapters = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    assert not any(values.any() for name, values in adapters.items() if "lora_B" in name)
    few: dict[str, Any] = {"prompts": "starter", "max_prompts": 4, "max_tokens": 8, "dtype": dtype}
    scorecard = flipsearch.evaluate(model=str(done.folder), reports=tmp_path, **few).scorecard
    assert scorecard.settings["quantize_base"] == quantize
    assert scorecard.against_id == done.run.model_id
    assert all(score.change and score.change.value == 0 for score in scorecard.scores if score.new.rate.n)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_checkpoint_computes_what_was_trained_and_loads_like_any_model(
    family: str, quantize: Quantize, checkpointing: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    needs_bitsandbytes()
    folder = request.getfixturevalue(family)
    done = train(tmp_path, folder, quantize=quantize, gradient_checkpointing=checkpointing)
    assert all(line["loss"] > 0 for line in done.log)
    assert "quantization_config" not in json.loads((done.folder / "config.json").read_text())
    trained: Any = PeftModel.from_pretrained(load(folder, quantize), done.folder / "adapter")
    with torch.no_grad():
        expected = trained(IDS).logits
        torch.testing.assert_close(load(done.folder)(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(load(folder, quantize)(IDS).logits, expected, atol=1e-3)
    assert done.run.settings["quantize"] == quantize
    assert any("were rounded to" in note for note in done.run.notes)
    assert "bitsandbytes" in done.run.versions
    assert f"rounded to {quantize[0]} bits" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("settings", [{"quantize": "4bit"}, {"lora": 0, "optimizer": "adamw-8bit"}], ids=str)
def test_a_resume_goes_on_as_if_nothing_had_happened(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bitsandbytes()
    folder = tiny_qwen3(tmp_path / "model", hidden_size=64)  # smaller weights keep moments in 32 bits
    saved = {**settings, "name": "mine", "save_steps": 2, "learning_rate": 1e-3}
    whole = train(tmp_path / "whole", folder, **saved)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", folder, **saved)
    resumed = train(tmp_path / "parts", folder, **saved, resume=True)
    assert [line["loss"] for line in resumed.log] == [line["loss"] for line in whole.log]
    first, second = (load_file(done.folder / "model.safetensors") for done in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_moments_of_8_bits_are_nearly_those_of_32(tmp_path: Path) -> None:
    needs_bitsandbytes()
    folder = tiny_qwen3(tmp_path / "model", hidden_size=64)
    exact, rounded, null = (
        [line["loss"] for line in train(tmp_path, folder, lora=0, learning_rate=1e-3, **more).log]
        for more in ({}, {"optimizer": "adamw-8bit"}, {"optimizer": "adamw-8bit", "control": "empty"})
    )
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact
    assert null == [0.0] * 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", BITS)
def test_memory_is_that_of_the_weights_as_they_are_loaded(quantize: Quantize, dtype: str, tmp_path: Path) -> None:
    needs_bitsandbytes()
    folder = tiny_qwen3(tmp_path, hidden_size=256)
    plan = plan_training({**SMALL, "model": str(folder), "quantize": quantize, "dtype": dtype, "device": "cpu"})
    model = load(folder, quantize, getattr(torch, dtype))
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for _, layer in quantized.quantized_layers(model):
        scales = layer.weight.quant_state if quantize == "4bit" else None
        tensors = [scales.absmax, scales.state2.absmax] if scales else [layer.weight.SCB]
        held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    adapters = step_memory(plan, folder, 1, 1).gradients
    assert step_memory(plan, folder, 1, 1).weights - adapters == pytest.approx(held, rel=0.02)


def test_memory_counts_bits_without_loading_anything(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    rounded = num_quantized(qwen3)
    assert 0 < rounded < num_parameters(qwen3)
    by_bits = {
        bits: step_memory(
            plan_training({**SMALL, "model": str(qwen3), "quantize": bits, "dtype": "float32", "device": "cpu"}),
            qwen3, 1, 1,
        ).weights
        for bits in (None, *BITS)
    }  # fmt: skip
    assert by_bits[None] - by_bits["8bit"] == 3 * rounded
    assert by_bits[None] - by_bits["4bit"] == pytest.approx(3.484 * rounded, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": 0}, "--quantize 4bit was given without --lora RANK"),
        ({"rollouts": "vllm"}, "--rollouts vllm would sample from whole weights, and --quantize 4bit trains rounded"),
        ({"quantize": "3bit"}, "--quantize is '3bit': expected '4bit' or '8bit'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    settings: dict[str, Any], message: str, qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, qwen3, **{"quantize": "4bit", **settings})


def test_without_bitsandbytes_it_is_named(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    for name, value in (("quantize", "8bit"), ("optimizer", "adamw-8bit")):
        with pytest.raises(ConfigError, match=rf"--{name} {value} needs bitsandbytes: pip install 'flipsearch\[quant"):
            train(tmp_path, qwen3, **{name: value})


def test_shards_are_refused(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="--lora trains adapters alone, for which FSDP is not made"):
        train(tmp_path, qwen3, quantize="4bit")
    with pytest.raises(ConfigError, match="--optimizer adamw-8bit does not run on shards"):
        train(tmp_path, qwen3, lora=0, optimizer="adamw-8bit")


def test_models_that_it_does_not_suit_are_refused(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    tokenizer = tiny_tokenizer()
    experts = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, moe_intermediate_size=64, num_experts=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, eos_token_id=2,
    )  # fmt: skip
    Qwen3MoeForCausalLM(experts).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    with pytest.raises(BackendError, match=r"linear layers, which hold \d+% of the model's weights beside"):
        train(tmp_path, tmp_path / "experts", quantize="4bit")
    shutil.copytree(qwen3, tmp_path / "fp8")
    config = json.loads((qwen3 / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    plan = plan_training({**SMALL, "model": str(tmp_path / "fp8"), "quantize": "4bit", "device": "cpu"})
    with pytest.raises(BackendError, match="files are quantised already; leave --quantize out"):
        check_memory(plan, tmp_path / "fp8")


def checkpoint_of(folder: Path, qwen3: Path, quantize: str | None) -> Path:
    """A checkpoint whose training says that its base was rounded, whatever it was."""
    done = train(folder, qwen3, name="mine", max_steps=1)
    record = json.loads((done.folder / "training.json").read_text())
    record["settings"]["quantize"] = quantize
    (done.folder / "training.json").write_text(json.dumps(record))
    return done.folder


def test_an_evaluation_rounds_the_base_as_the_training_did_or_says_why_not(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(tmp_path, qwen3, "8bit")
    few: dict[str, Any] = {"reports": tmp_path, "prompts": "starter", "max_prompts": 4, "max_tokens": 8}
    monkeypatch.setattr(evaluation_plan, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(ConfigError, match=r"in 8bit needs bitsandbytes .*; or compare with it as it is stored: --ag"):
        flipsearch.evaluate(model=str(checkpoint), **few)
    whole = flipsearch.evaluate(model=str(checkpoint), against=str(qwen3), **few).scorecard
    assert "The checkpoint was trained in 8bit: what that rounding changed counts, too." in whole.notes
    with pytest.raises(ConfigError, match="--quantize-base 4bit is for the base, and there is none; give --ag"):
        flipsearch.evaluate(model=str(qwen3), quantize_base="4bit", **few)
    record = json.loads((checkpoint / "training.json").read_text())
    for edited in ("3bit", ["8bit"]):
        settings = record["settings"] | {"quantize": edited}
        (checkpoint / "training.json").write_text(json.dumps(record | {"settings": settings}))
        with pytest.raises(ConfigError, match=r"says quantize .*, expected '4bit' or '8bit'.* give --against MODEL"):
            flipsearch.evaluate(model=str(checkpoint), **few)
    checkpoint_of_anyone = json.loads((checkpoint / "training.json").read_text()) | {"settings": ["4bit"]}
    (checkpoint / "training.json").write_text(json.dumps(checkpoint_of_anyone))
    with pytest.raises(FlipsearchError, match="no training of this version"):
        flipsearch.evaluate(model=str(checkpoint), **few)


def test_weights_that_are_not_those_that_were_trained_are_reported(qwen3: Path, tmp_path: Path) -> None:
    checkpoint = train(tmp_path, qwen3, name="mine", max_steps=1).folder
    few: dict[str, Any] = {"reports": tmp_path, "prompts": "starter", "max_prompts": 4, "max_tokens": 8}
    note = f"'{checkpoint}' is not as its training left it: weights or settings were changed since."
    assert note not in flipsearch.evaluate(model=str(checkpoint), **few).scorecard.notes
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert note in flipsearch.evaluate(model=str(checkpoint), **few).scorecard.notes
