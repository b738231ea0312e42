"""Where a model's files are, whether they can be loaded, and what identifies them.

A model is a local folder or a hub id "org/name[@revision]". Only safetensors weights are accepted: pickled weights can
run code. Nothing here loads a model or imports torch.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download

from flipsearch.core.errors import BackendError

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
LOADED_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "*.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template*"),
)
UNLOADED_FILES = ("*/*", "consolidated*")
"""Hub files that match the patterns above but are other forms of the same model."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is on this machine."""

    folder: Path
    """Local folder with config.json, tokenizer and safetensors weights."""
    revision: str | None
    """Commit hash of a hub model; None for a local folder."""
    fingerprint: str
    """Content hash of a local folder, or the hub's name and commit."""


def check(model: str) -> None:
    """Raise BackendError if `model` can be seen to be unusable without loading it or using the network."""
    folder = _local_folder(model)
    if folder is not None:
        check_folder(folder)
    elif not HUB_ID.fullmatch(model):
        raise BackendError(
            f"unknown model '{model}': there is no such folder here, and a hub id has the form org/name[@revision]."
        )


def locate(model: str) -> ModelFiles:
    """Return the files of `model`, downloading a hub model if it is not here yet; BackendError if it cannot be had."""
    check(model)
    folder = _local_folder(model)
    if folder is not None:
        return ModelFiles(folder, None, fingerprint(folder))
    found = HUB_ID.fullmatch(model)
    assert found is not None  # by check
    folder = _snapshot(model, found["name"], found["revision"])
    check_folder(folder)
    # The cache names a snapshot's folder by its commit.
    return ModelFiles(folder, folder.name, f"{found['name']}@{folder.name}")


def check_folder(folder: Path) -> None:
    """Raise BackendError, naming what it saw, unless `folder` holds a config, a tokenizer and whole weights."""
    names = sorted(path.name for path in folder.iterdir())
    saw = f"it holds {', '.join(names[:12]) or 'nothing'}{', …' if len(names) > 12 else ''}"
    if "config.json" not in names:
        hint = " An adapter alone cannot be loaded: merge it first." if "adapter_config.json" in names else ""
        raise BackendError(f"no model in '{folder}': config.json is missing; {saw}.{hint}")
    _check_config(folder / "config.json")
    if not any(name in names for name in TOKENIZER_FILES):
        raise BackendError(f"no tokenizer in '{folder}': expected one of {', '.join(TOKENIZER_FILES)}; {saw}.")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        pickled = any(name.endswith(PICKLED) for name in names)
        hint = " Pickled weights are not loaded, as they can run code: convert them to safetensors." if pickled else ""
        raise BackendError(f"no safetensors weights in '{folder}': {saw}.{hint}")
    for name in [*weights, *_shards(folder)]:
        _check_weights(folder / name)


def fingerprint(folder: Path) -> str:
    """Return a content hash of everything in `folder` that can change a completion.

    Configs, tokenizer files, chat templates and weights, all of them whole: a sample of the weights would miss an edit
    of a single layer. About a second for two gigabytes, less than loading them takes.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in LOADED_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _local_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    if folder.is_file():
        raise BackendError(f"'{model}' is a file; expected the model's folder or a hub id org/name.")
    return folder if folder.is_dir() else None


def _check_config(path: Path) -> None:
    config = _read_json(path)
    if "model_type" not in config:
        raise BackendError(f"'{path}' names no model_type: it is not the config of a transformers model.")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(f"'{path}' cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BackendError(f"'{path}' holds a JSON {type(content).__name__}, expected an object.")
    return content


def _shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = _read_json(index).get("weight_map")
    return sorted(set(shards.values())) if isinstance(shards, dict) else []


def _check_weights(path: Path) -> None:
    """Compare a safetensors file's size with what its header promises: finds missing, cut and pointer files."""
    if not path.is_file():
        raise BackendError(f"weights are incomplete: '{path}' is missing; download the model again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= size else b""
    try:
        tensors = json.loads(header)
        end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        end = None
    if end is None or 8 + length + end != size:
        raise BackendError(f"'{path}' is not a whole safetensors file ({size} bytes); download the model again.")


def _snapshot(model: str, name: str, revision: str | None) -> Path:
    try:
        wanted, unwanted = list(LOADED_FILES), list(UNLOADED_FILES)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except hub_errors.GatedRepoError as error:
        raise BackendError(
            f"model '{model}' is gated: accept its terms on the hub and log in with `hf auth login`."
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise BackendError(f"model '{name}' has no revision '{revision}'; check the part after the @.") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise BackendError(
            f"model '{model}' is neither a folder here nor a public model on the hub; "
            "check the spelling, or log in with `hf auth login` if it is private."
        ) from error
    except Exception as error:  # the hub's HTTP library differs by version, and so do its errors
        raise BackendError(
            f"model '{model}' is not a folder here, not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}); go online or give the model's folder."
        ) from error
