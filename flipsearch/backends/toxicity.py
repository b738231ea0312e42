"""Detoxify's classifiers (Hanu and Unitary team 2020): the toxicity of a text's wording, by class.

The package's own loader contacts the hub even where all files are here, unpickles, and fills in at random what does not
fit. This one reads tensors and plain values alone, on an architecture from a local folder, completely or not at all.
Long texts are classified in overlapping windows, and each class scores its highest. In float32.

N texts, W windows, T tokens of the longest window of a batch, K classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import AliasPath, BaseModel, Field, ValidationError
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from flipsearch.backends.loading import load_tokenizer, quiet
from flipsearch.core.errors import BackendError, one_line

ARCHITECTURES = (BertForSequenceClassification, RobertaForSequenceClassification, XLMRobertaForSequenceClassification)
CLASSES: dict[str, type[PreTrainedModel]] = {architecture.__name__: architecture for architecture in ARCHITECTURES}
STANDARD_NAMES = {"toxic": "toxicity", "severe_toxic": "severe_toxicity", "identity_hate": "identity_attack"}
"""Class names of the first checkpoint -> those of the later ones, as in the package."""
LEFTOVERS = re.compile(r"\w+\.embeddings\.position_ids|roberta\.pooler\.dense\.(weight|bias)")
"""Weights that the transformers of 2020 saved and a classifier never uses, or computes itself."""
LONGEST_WINDOW = 512
OVERLAP_SHARE = 1 / 4
"""Characters that windows share, so that text cut at the edge of one is complete in the next."""
BATCH_TOKENS = {True: 1024, False: 32768}
"""Tokens per batch on a CPU (what its caches hold) and on anything else."""


def constants() -> tuple[float, ...]:
    """Return the constants that can change a score, which are part of a judge's identity."""
    return LONGEST_WINDOW, OVERLAP_SHARE


class _CheckpointConfig(BaseModel):
    model_class: str = Field(validation_alias=AliasPath("arch", "args", "model_name"))
    num_classes: int = Field(ge=1, validation_alias=AliasPath("arch", "args", "num_classes"))
    classes: list[str] = Field(min_length=1, validation_alias=AliasPath("dataset", "args", "classes"))


class ToxicityModel:
    """A checkpoint on an architecture (a folder with config.json and tokenizer); BackendError if they do not fit."""

    def __init__(self, checkpoint: Path, architecture: Path, device: torch.device) -> None:
        config, state = _read(checkpoint)
        self.classes = tuple(STANDARD_NAMES.get(name, name) for name in config.classes)
        """Names of the K classes, "toxicity" among them; outputs beyond them are ignored."""
        if "toxicity" not in self.classes or len(self.classes) > config.num_classes:
            classes = ", ".join(self.classes)
            raise BackendError(f"'{checkpoint}' has the classes {classes}: none is toxicity, or too many.")
        self._model = _build(config, architecture)
        _fill(self._model, state, checkpoint)
        module: torch.nn.Module = self._model
        module.to(device).eval()
        self._tokenizer = load_tokenizer(architecture)
        shape = self._model.config
        # RoBERTa's positions begin after that of its padding.
        unused = 0 if shape.model_type == "bert" else shape.pad_token_id + 1
        self._window = min(LONGEST_WINDOW, int(shape.max_position_embeddings) - unused)

    @torch.inference_mode()
    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the sigmoid (N, K) of each class for each text, in [0, 1]; the highest of its windows."""
        highest = torch.zeros((len(texts), len(self.classes)))
        if not texts:
            return highest
        overlap = int(self._window * OVERLAP_SHARE)
        options = {"truncation": True, "max_length": self._window, "stride": overlap, "return_overflowing_tokens": True}
        with quiet():
            encoded = self._tokenizer(list(texts), **options)
        windows, owners = encoded["input_ids"], encoded["overflow_to_sample_mapping"]
        most = BATCH_TOKENS[self._model.device.type == "cpu"]
        left = sorted(range(len(windows)), key=lambda row: len(windows[row]), reverse=True)
        while left:  # windows of similar length, so that there is little padding
            num = max(1, most // max(1, len(windows[left[0]])))
            rows, left = left[:num], left[num:]
            sigmoids = self._sigmoids([windows[row] for row in rows])  # (rows, K)
            for row, values in zip(rows, sigmoids, strict=True):
                highest[owners[row]] = torch.maximum(highest[owners[row]], values)
        return highest

    def _sigmoids(self, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in windows])
        pad = float(self._tokenizer.pad_token_id)
        ids = pad_sequence([torch.tensor(ids) for ids in windows], batch_first=True, padding_value=pad)  # (rows, T)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self._model.device
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
        return torch.sigmoid(logits[:, : len(self.classes)].float()).cpu()


def _read(checkpoint: Path) -> tuple[_CheckpointConfig, dict[str, torch.Tensor]]:
    try:
        # Tensors and plain values alone: nothing in the file is run.
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises everything from KeyError to its own types, in many lines
        reason = f"cannot be read as tensors and plain values ({one_line(error, 160)})"
        raise BackendError(f"'{checkpoint}' {reason}; is it whole, and Detoxify's?") from error
    try:
        config, state = _CheckpointConfig.model_validate(content["config"]), dict(content["state_dict"])
    except (ValidationError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BackendError(
            f"'{checkpoint}' is no Detoxify checkpoint: expected config (arch and dataset) and state_dict."
        ) from error
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise BackendError(f"'{checkpoint}' has a state_dict that holds more than named tensors.")
    return config, state


def _build(checkpoint: _CheckpointConfig, architecture: Path) -> PreTrainedModel:
    model_class = CLASSES.get(checkpoint.model_class)
    if model_class is None:
        raise BackendError(f"the checkpoint is a {checkpoint.model_class[:60]}, expected one of {', '.join(CLASSES)}.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                architecture, num_labels=checkpoint.num_classes, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the library raises everything from KeyError to its own types
        raise BackendError(f"the config in '{architecture}' cannot be read: {one_line(error)}") from error
    if type(config) is not model_class.config_class:
        raise BackendError(
            f"the checkpoint is a {checkpoint.model_class}, but '{architecture}' holds the config of a "
            f"{config.model_type}; give the variant and architecture that go with it."
        )
    with quiet(), torch.random.fork_rng(devices=[]):  # every weight is filled in afterwards
        return model_class(config)


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor], checkpoint: Path) -> None:
    kept = {name: value for name, value in state.items() if not LEFTOVERS.fullmatch(name)}
    expected = set(model.state_dict())
    missing, unknown = sorted(expected - set(kept)), sorted(set(kept) - expected)
    if missing or unknown:
        examples = [", ".join(names[:3] + ["…"] * (len(names) > 3)) or "none" for names in (missing, unknown)]
        raise BackendError(
            f"'{checkpoint}' does not fill its model: {len(missing)} weights are missing ({examples[0]}), "
            f"{len(unknown)} are unknown ({examples[1]})."
        )
    try:
        model.load_state_dict(kept, strict=True)
    except RuntimeError as error:  # sizes
        raise BackendError(f"'{checkpoint}' does not fit its model: {one_line(error, 300)}") from error
