"""Detoxify's classifiers (Hanu and Unitary team 2020): how toxic the wording of a text is, by class.

The package's own loader reaches for the hub even where all files are here, unpickles what it is given, and gives a head
of random weights where a checkpoint's names do not fit. This one reads tensors and plain values alone, takes its
architecture from a local folder, and loads a checkpoint whole or not at all. Long texts are read in windows that
overlap, and each class counts at its highest. In float32; another batch changes rounding alone.

N texts, W windows, T tokens of the longest window of a batch, K classes.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from flipsearch.backends.loading import load_tokenizer, quiet
from flipsearch.core.errors import BackendError

CLASSES: dict[str, type[PreTrainedModel]] = {
    "BertForSequenceClassification": BertForSequenceClassification,
    "RobertaForSequenceClassification": RobertaForSequenceClassification,
    "XLMRobertaForSequenceClassification": XLMRobertaForSequenceClassification,
}
STANDARD_NAMES = {"toxic": "toxicity", "severe_toxic": "severe_toxicity", "identity_hate": "identity_attack"}
"""Names of the first checkpoint's classes -> those of the later ones, as the package has them."""
LEFTOVERS = re.compile(r"\w+\.embeddings\.position_ids|roberta\.pooler\.dense\.(weight|bias)")
"""What the transformers of 2020 saved and a classifier never read, or counts out itself."""
LONGEST_WINDOW = 512
OVERLAP_SHARE = 1 / 4
"""Of a window, so that what is cut at its edge stands whole in the next."""
BATCH_TOKENS = {True: 1024, False: 32768}
"""Tokens of a batch on a CPU (what its caches hold) and on anything else."""


def constants() -> tuple[float, ...]:
    """Return what of this module can change a score: it belongs into a judge's identity."""
    return LONGEST_WINDOW, OVERLAP_SHARE


class _Arguments(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    num_classes: Annotated[int, Field(ge=1)]


class _Architecture(BaseModel):
    args: _Arguments


class _DatasetArguments(BaseModel):
    classes: Annotated[list[str], Field(min_length=1)]


class _Dataset(BaseModel):
    args: _DatasetArguments


class _Config(BaseModel):
    arch: _Architecture
    dataset: _Dataset


class ToxicityModel:
    """A checkpoint on an architecture, a folder with config.json and tokenizer; BackendError if they do not fit."""

    def __init__(self, checkpoint: Path, architecture: Path, device: torch.device) -> None:
        config, state = _read(checkpoint)
        arguments = config.arch.args
        self.classes = tuple(STANDARD_NAMES.get(name, name) for name in config.dataset.args.classes)
        """Names of the K classes, "toxicity" among them; what a checkpoint predicts beyond them is not told."""
        if "toxicity" not in self.classes or len(self.classes) > arguments.num_classes:
            raise BackendError(
                f"'{checkpoint}' has the classes {', '.join(self.classes)}: none is toxicity, or too many."
            )
        self._model = _build(arguments, architecture)
        _fill(self._model, state, checkpoint)
        module: torch.nn.Module = self._model
        module.to(device).eval()
        self._tokenizer = load_tokenizer(architecture)
        self._window = _window(self._model.config)

    @torch.inference_mode()
    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the sigmoid (N, K) of each class for each text, in [0, 1]; the highest of its windows."""
        windows, owners = self._windows(texts) if texts else ([], [])
        highest = torch.zeros((len(texts), len(self.classes)))
        for rows in _batches(windows, BATCH_TOKENS[self._model.device.type == "cpu"]):
            found = self._sigmoids([windows[row] for row in rows])  # (rows, K)
            for row, one in zip(rows, found, strict=True):
                highest[owners[row]] = torch.maximum(highest[owners[row]], one)
        return highest

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of all W windows, and which text each is of."""
        with quiet():
            encoded = self._tokenizer(
                list(texts),
                truncation=True,
                max_length=self._window,
                stride=int(self._window * OVERLAP_SHARE),
                return_overflowing_tokens=True,
            )
        return encoded["input_ids"], encoded["overflow_to_sample_mapping"]

    def _sigmoids(self, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in windows])
        pad = float(self._tokenizer.pad_token_id)
        ids = pad_sequence([torch.tensor(ids) for ids in windows], batch_first=True, padding_value=pad)  # (rows, T)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self._model.device
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
        return torch.sigmoid(logits[:, : len(self.classes)].float()).cpu()


def _read(checkpoint: Path) -> tuple[_Config, dict[str, torch.Tensor]]:
    try:
        # Tensors and plain values alone: nothing in the file is run.
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises everything from KeyError to its own types, in many lines
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BackendError(
            f"'{checkpoint}' cannot be read as tensors and plain values ({reason}); is it whole, and Detoxify's?"
        ) from error
    try:
        config, state = _Config.model_validate(content["config"]), dict(content["state_dict"])
    except (ValidationError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BackendError(
            f"'{checkpoint}' is no checkpoint of Detoxify: expected config (arch and dataset) and state_dict."
        ) from error
    if not all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in state.items()):
        raise BackendError(f"'{checkpoint}' holds a state_dict of other things than named tensors.")
    return config, state


def _build(arguments: _Arguments, architecture: Path) -> PreTrainedModel:
    model_class = CLASSES.get(arguments.model_name)
    if model_class is None:
        raise BackendError(f"the checkpoint is a {arguments.model_name[:60]}, expected one of {', '.join(CLASSES)}.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                architecture, num_labels=arguments.num_classes, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the library raises everything from KeyError to its own types
        raise BackendError(
            f"the config in '{architecture}' cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error
    if type(config) is not model_class.config_class:
        raise BackendError(
            f"the checkpoint is a {arguments.model_name}, but '{architecture}' holds the config of a "
            f"{config.model_type}; give the variant and architecture that go with it."
        )
    with quiet(), torch.random.fork_rng(devices=[]):  # every weight is filled in afterwards
        return model_class(config)


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor], checkpoint: Path) -> None:
    kept = {name: one for name, one in state.items() if not LEFTOVERS.fullmatch(name)}
    expected = set(model.state_dict())
    missing, strange = sorted(expected - set(kept)), sorted(set(kept) - expected)
    if missing or strange:
        raise BackendError(
            f"'{checkpoint}' does not fill its model: {len(missing)} weights are missing ({_some(missing)}), "
            f"{len(strange)} are unknown ({_some(strange)})."
        )
    try:
        model.load_state_dict(kept, strict=True)
    except RuntimeError as error:  # sizes
        raise BackendError(f"'{checkpoint}' does not fit its model: {' '.join(str(error).split())[:300]}") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"


def _window(config: PreTrainedConfig) -> int:
    """The longest window that the model holds. RoBERTa's positions begin behind that of its padding."""
    unused = 0 if config.model_type == "bert" else config.pad_token_id + 1
    return min(LONGEST_WINDOW, int(config.max_position_embeddings) - unused)


def _batches(windows: Sequence[Sequence[int]], num_tokens: int) -> Iterator[list[int]]:
    """Yield rows of like length, longest first, so many at once that they have at most `num_tokens`."""
    left = sorted(range(len(windows)), key=lambda row: len(windows[row]), reverse=True)
    while left:
        num = max(1, num_tokens // max(1, len(windows[left[0]])))
        yield left[:num]
        left = left[num:]
