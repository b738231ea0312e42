"""GGUF files as models: unpacked once into a folder of safetensors, which every backend then loads as any other.

The folder is in the cache, named by the file's content, and is written atomically. transformers reads
weights and tokenizer; what it would silently ignore is fixed or refused here.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flipsearch.backends.loading import DTYPES, quiet
from flipsearch.backends.models import check_folder
from flipsearch.core.errors import BackendError, one_line
from flipsearch.core.files import cache_folder

UNPACKED_VERSION = 1
"""Of what is made from a file; part of the folder's name."""
VOCABULARY = re.compile(r"tokenizer\.ggml\.(?:.*\.)?(?:tokens|merges|scores)")
INFO_FILE = "gguf.json"
"""File of an unpacked folder with the note on its precision."""
PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Tensor type of an unquantized file -> dtype of the unpacked weights; a quantized file becomes bfloat16."""
GPT2_SPLITS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "exaone4", "mellum")
"""Pre-tokenizers that split a text as GPT-2 does, which is what transformers falls back to."""
DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Pre-tokenizers of which transformers does not know that they take digits one by one."""
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself beside its weights."""

    architecture: str
    precision: str
    """The commonest type of its matrices, e.g. Q4_1."""
    splits: str
    """Name of its pre-tokenizer; "" for a tokenizer that has none."""
    end_ids: tuple[int, ...]
    tensor_names: frozenset[str]
    rope_factors: tuple[float, ...]
    """Divisors of the rotary frequencies; () if the file has none."""


def unpacked(file: Path) -> tuple[Path, str]:
    """Return the folder of a GGUF file, unpacked if it is not there, and a note; BackendError if unreadable."""
    status = file.stat()
    digest = _content_hash(str(file.resolve()), status.st_size, status.st_mtime_ns)
    folder = cache_folder("gguf") / f"{file.stem[:80]}-{digest}-v{UNPACKED_VERSION}"
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)  # part of it was deleted
        _unpack_once(file, folder)
    note = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))["note"]
    return folder, f"{file.name}: {note}"


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except (BackendError, OSError):
        return False
    return (folder / INFO_FILE).is_file()


@lru_cache(maxsize=16)
def _content_hash(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _unpack_once(file: Path, folder: Path) -> None:
    """Unpack a file beside its folder and give it the folder's name; a second process waits for nothing and agrees."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _unpack(file, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not _is_whole(folder):  # otherwise another process was first, with the same content
                raise
    except OSError as error:
        raise BackendError(
            f"'{file}' cannot be unpacked into '{folder.parent}': {error.strerror or one_line(error)}; "
            "free the disk, or set XDG_CACHE_HOME to a folder on a disk that holds the model."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file; BackendError for one that is cut, broken or of an unknown kind."""
    gguf: Any = importlib.import_module("gguf")
    try:
        reader = gguf.GGUFReader(file)
        # Those of the vocabulary hold some 100,000 texts, which take seconds to read one by one.
        fields = {name: field.contents() for name, field in reader.fields.items() if not VOCABULARY.fullmatch(name)}
        matrices = [tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1]
        factors = [tensor.data for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
        ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return GgufHeader(
            architecture=str(fields["general.architecture"]),
            precision=max(sorted(set(matrices)), key=matrices.count),
            splits=str(fields.get("tokenizer.ggml.pre", "")) if fields.get("tokenizer.ggml.model") == "gpt2" else "",
            end_ids=tuple(dict.fromkeys(int(id) for id in ends if id is not None)),
            tensor_names=frozenset(tensor.name for tensor in reader.tensors),
            rope_factors=tuple(float(value) for values in factors for value in values),
        )
    except Exception as error:  # the reader raises whatever numpy does with what is not there
        raise BackendError(
            f"'{file}' is cut or broken ({file.stat().st_size} bytes; {one_line(error, 100)}); download it again."
        ) from error


def _unpack(file: Path, folder: Path) -> None:
    header = read_header(file)
    try:
        # The bar over the tensors is not one of those that a setting of the library leaves out.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            if header.splits in DIGIT_SPLITS:
                one_by_one = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(one_by_one)
            tokenizer.save_pretrained(folder)
            dtype = _write_weights(file, header, folder)
    except (BackendError, OSError):
        raise
    except Exception as error:  # the library raises everything from KeyError to its own types
        raise BackendError(
            f"'{file}' (architecture {header.architecture}, {header.precision}) cannot be read by transformers: "
            f"{one_line(error)}; give the model's folder with safetensors instead."
        ) from error
    how = "as they are" if header.precision in PRECISIONS else f"unpacked from {header.precision}"
    note = f"weights in {dtype}, {how}."
    if header.splits and header.splits not in (*GPT2_SPLITS, *DIGIT_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        note += (
            f" Its pre-tokenizer '{header.splits}' is not known: text is split as GPT-2 does, and the model may read "
            "other tokens than it was trained on."
        )
    (folder / INFO_FILE).write_text(json.dumps({"note": note}), encoding="utf-8")


def _write_weights(file: Path, header: GgufHeader, folder: Path) -> str:
    name = PRECISIONS.get(header.precision, "bfloat16")
    load: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = load(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=DTYPES[name],
        output_loading_info=True,
        local_files_only=True,
    )
    if lost := sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"])):
        raise ValueError(f"{len(lost)} weights are not in the file, e.g. {lost[0]}")
    if info["unexpected_keys"]:
        raise ValueError(f"its weight {min(info['unexpected_keys'])} has no place in the model")
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    with torch.device("meta"):  # the loaded one calls itself quantized, and cannot be saved
        model = type(loaded)(type(loaded.config)(**config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    _check_tensors(model, header)
    _set_rope(model.config, header)
    model.generation_config.eos_token_id = list(header.end_ids) or None
    model.save_pretrained(folder)
    return name


def _check_tensors(model: PreTrainedModel, header: GgufHeader) -> None:
    """Raise ValueError for tensors that transformers leaves out without a word, e.g. biases."""
    if header.architecture in GGUF_ARCHS:  # read by newer code, which names them
        return
    processor_class: Any = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    names_of: Any = get_gguf_hf_weights_map
    known = {*names_of(model, processor_class(config=model.config.to_dict())), ROPE_FACTORS}
    # Those of all experts together are found by rules and not by name.
    lost = sorted(name for name in header.tensor_names - known if "_exps" not in name)
    if lost:
        raise ValueError(f"{len(lost)} of its tensors have no place in a {type(model).__name__}, e.g. {lost[0]}")


def _set_rope(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Put the frequency factors of Llama 3, which transformers leaves out, into its config; ValueError for others."""
    if not header.rope_factors:
        return
    plain = dict(config.rope_parameters)
    largest = max(header.rope_factors)
    config.rope_parameters = {**plain, "rope_type": "llama3", "factor": largest, **LLAMA3_ROPE}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    theta, half = float(plain["rope_theta"]), len(header.rope_factors)
    frequencies = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    if not torch.allclose(frequencies / scaled, torch.tensor(header.rope_factors), rtol=1e-3):
        raise ValueError(f"its {ROPE_FACTORS} are not those of Llama 3.1 to 3.3")
