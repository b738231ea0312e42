"""A model that can be loaded can be saved: what transformers would refuse to save is found before any training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from flipsearch.backends.loading import load_model, quiet
from flipsearch.core.errors import BackendError
from flipsearch.training.model import make_savable
from tests.models import tiny_qwen3


def loaded_with(folder: Path, **settings: Any) -> PreTrainedModel:
    path = tiny_qwen3(folder) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return load_model(folder, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"temperature": 0.0, "do_sample": False},
        {"pad_token_id": -1},
        {"length_penalty": 0.5},
    ],
)
def test_settings_without_effect_are_unset_and_noted(settings: dict[str, Any], tmp_path: Path) -> None:
    model = loaded_with(tmp_path / "base", **settings)
    with quiet(), pytest.raises(ValueError, match="Fix these issues"):
        model.save_pretrained(tmp_path / "saved")
    (note,) = make_savable(model)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    for name, value in settings.items():
        assert name == "do_sample" or f"{name} = {value}" in note
        assert saved.get(name) in (None, False)
    assert saved["eos_token_id"] == model.generation_config.eos_token_id


def test_consistent_settings_stay(tmp_path: Path) -> None:
    model = loaded_with(tmp_path, temperature=0.6, do_sample=True)
    assert make_savable(model) == ()
    assert (model.generation_config.temperature, model.generation_config.do_sample) == (0.6, True)


def test_a_fault_that_cannot_be_unset_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_with(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise ValueError("Wrong.\nAltogether.")

    monkeypatch.setattr(GenerationConfig, "validate", never)
    with pytest.raises(BackendError, match=r"could not be saved .*: Wrong\. Altogether\.$"):
        make_savable(model)


def rewrite(folder: Path, change: Any) -> Path:
    """Change the weights of a saved model: `change` takes their dictionary."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"1 weights are missing .*model\.norm\.weight"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}),
            r"1 have another shape, e\.g\. model\.norm\.weight \(\(3,\) in the files",
        ),
        (
            lambda weights: weights.update({"model.layers.0.mlp.extra.weight": torch.zeros(3)}),
            r"1 weights of its files have no place in a Qwen3ForCausalLM, e\.g\. model\.layers\.0\.mlp\.extra\.weight",
        ),
    ],
)
def test_every_weight_of_the_files_is_used_and_none_is_missing(change: Any, message: str, tmp_path: Path) -> None:
    folder = rewrite(tiny_qwen3(tmp_path), change)
    with pytest.raises(BackendError, match=message):
        load_model(folder, torch.device("cpu"), torch.float32)
