"""A GGUF file is a model: unpacked once, exactly, or refused in one line."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flipsearch.backends.loading import load_model, load_tokenizer
from flipsearch.backends.models import check_source, list_models, locate, model_source
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Prompt, Request, Sampling
from tests.gguf_writer import tiny_llama, write_gguf
from tests.models import PLAIN_TEMPLATE, tiny_tokenizer

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")
IDS = torch.tensor([[5, 80, 17, 200, 33, 91]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@needs_gguf
def test_a_file_becomes_a_folder_with_the_same_model(tmp_path: Path) -> None:
    model = tiny_llama()
    file = write_gguf(tmp_path / "tiny.gguf", model)
    files = locate(str(file))
    assert files.notes == ("tiny.gguf: weights in float32, as they are.",)
    loaded = load_model(files.folder, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert loaded.generation_config.eos_token_id == [tiny_tokenizer().eos_token_id]
    tokenizer, original = load_tokenizer(files.folder), tiny_tokenizer(PLAIN_TEMPLATE)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    text = "<|im_start|>user\nHow do I boil an egg?<|im_end|><think>"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert len(tokenizer("25")["input_ids"]) == 2, "this pre-tokenizer takes digits one by one"
    written = (files.folder / "model.safetensors").stat().st_mtime_ns
    assert locate(str(file)) == files
    assert (files.folder / "model.safetensors").stat().st_mtime_ns == written, "unpacked once"


@needs_gguf
def test_a_quantized_file_is_searched_as_any_model_and_says_its_precision(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "q8.gguf", tiny_llama(), quantization="Q8_0", splits="of-its-own")
    backend = TransformersBackend(str(file))
    (note,) = [note for note in backend.notes if "q8.gguf" in note]
    assert "weights in bfloat16, unpacked from Q8_0" in note
    assert "pre-tokenizer 'of-its-own' is not known" in note
    ((rollout,),) = backend.generate([Request(Prompt("How?", "harmful"))], Sampling(max_tokens=4))
    assert rollout.finish_reason in ("stop", "length")


@needs_gguf
def test_the_frequencies_of_llama_3_are_kept(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = tiny_llama(rope_parameters=scaling, head_dim=16)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(8) / 8)
    factors = (plain / scaled).numpy().astype(np.float32)
    files = locate(str(write_gguf(tmp_path / "three.gguf", model, more={"rope_freqs.weight": factors})))
    loaded = load_model(files.folder, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    strange = write_gguf(tmp_path / "strange.gguf", model, more={"rope_freqs.weight": factors * factors})
    with pytest.raises(BackendError, match=r"its rope_freqs.weight are not those of Llama 3\.1"):
        locate(str(strange))


@needs_gguf
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "cobra"}, "architecture cobra, F32.* cannot be read by transformers"),
        ({"more": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, r"1 of its tensors have no place .*attn_q\.bias"),
    ],
)
def test_what_transformers_would_leave_out_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", tiny_llama(), **options)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=message) as caught:
        locate(str(file))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "flipsearch" / "gguf").iterdir()), "nothing half-made stays"


@needs_gguf
@pytest.mark.parametrize("kept", [4, 30, 3000, -1000])
def test_a_cut_file_is_one_line(kept: int, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "cut.gguf", tiny_llama())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BackendError, match=r"is cut or broken .*download it again") as caught:
        locate(str(file))
    assert "\n" not in str(caught.value)


def test_what_is_no_gguf_file_is_found_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<html>")
    with pytest.raises(BackendError, match=r"is no GGUF file \(it has 6 bytes\)"):
        check_source(str(file))
    with pytest.raises(BackendError, match="there is no file"):
        check_source(str(tmp_path / "none.gguf"))


def test_without_the_package_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "any.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("flipsearch.backends.models.has_gguf", lambda: False)
    with pytest.raises(BackendError, match=r"pip install 'flipsearch\[gguf\]'"):
        check_source(str(file))
    assert "flipsearch[gguf]" in list_models()["FILE.gguf"]


def test_smollm2_is_the_file_inside_its_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.backends.models.SMOLLM2_PACKAGE", "a-tiny-model")
    with pytest.raises(BackendError, match=r"not installed: pip install 'flipsearch\[smollm2\]'"):
        model_source("smollm2")
    about = tmp_path / "a_tiny_model-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: a-tiny-model\nVersion: 1.0\n")
    (about / "RECORD").write_text("a_tiny_model/__init__.py,,\na_tiny_model/Tiny.Q4_1.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_source("smollm2") == str(tmp_path / "a_tiny_model" / "Tiny.Q4_1.gguf")
