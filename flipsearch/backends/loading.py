"""Loads tokenizers and causal language models from safetensors, with every failure as one clear line.

Also what is known of the machine: its devices, its memory, and how torch says that it ran out.
"""

import contextlib
import gc
import os
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from flipsearch.backends.cache import GROUPED_ATTENTION
from flipsearch.backends.models import locate, model_source
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError, ConfigError, one_line
from flipsearch.core.records import content_id

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""Parts of torch's messages, in lower case, on a GPU, on a CPU and from a GPU's matrix library."""
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""A container's memory limit in bytes; "max" is no limit."""
FLAGGED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""How transformers names the generation settings that it ignores, and for which it refuses to save a model."""
BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
"""Ends of the names of what older files hold beside weights: every model computes these anew."""
SENSES = ("vision", "visual", "image", "audio", "speech", "multi_modal", "mm_", "projector")
"""Parts of the names of weights that only pictures and sounds pass through."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device or of the machine ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def memory_bytes() -> int:
    """Return the memory of this machine in bytes, or the limit of its container if that is less."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not known on this system
        machine = 4 * 2**30
    limit = LIMIT_FILE.read_text().strip() if LIMIT_FILE.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def gpu_memory() -> dict[str, tuple[int, int]]:
    """Return the free and the total bytes of each GPU that torch can use, by "cuda:N NAME"."""
    names = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    return {name: torch.cuda.mem_get_info(index) for index, name in enumerate(names)}


def free_memory() -> None:
    """Return memory that nothing references any more to the system, on a GPU to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_device(device: str) -> torch.device:
    """Return the named device; "auto" is CUDA if there is any, else the CPU. ConfigError for one that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{device}' cannot be used here; try auto, cpu or cuda.") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the named dtype; "auto" is bfloat16 on CUDA and float32 elsewhere. ConfigError for any other name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is '{dtype}', expected auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def local_identity(config: ModelConfig) -> str:
    """Return an identity of a local or hub model on its backend; a hub model is downloaded, no weights are loaded.

    It changes whenever the backend's `model_id` does.
    """
    fingerprint = locate(model_source(config.model)).fingerprint
    dtype = choose_dtype(config.dtype, choose_device(config.device))
    return content_id("model", config.backend, fingerprint, config.thinking, str(dtype))


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`; BackendError if it cannot be loaded."""
    if (folder / "config.json").is_file():
        load_config(folder)  # or its faults would be called the tokenizer's
    with quiet(), _clear_errors(folder, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer.decode(tokenizer("x")["input_ids"])  # settings of the wrong kind show at the first text only
        return tokenizer


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the config in `folder`; BackendError if it cannot be loaded."""
    with quiet(), _clear_errors(folder, "config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return config


def load_generation_settings(folder: Path) -> GenerationConfig:
    """Return the generation settings of a model, without a file of them its config's; BackendError for a broken one."""
    if not (folder / "generation_config.json").exists():
        return GenerationConfig.from_model_config(load_config(folder))
    with quiet(), _clear_errors(folder, "generation_config.json"):
        settings: GenerationConfig = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return settings


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in `folder` in evaluation mode; BackendError if it cannot be loaded completely."""
    trusted: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **trusted}
    # Weights of another shape are refused below, with their names; the library would point at its log.
    load: Any = partial(AutoModelForCausalLM.from_pretrained, ignore_mismatched_sizes=True)
    config = load_config(folder)
    with quiet(), _clear_errors(folder, "model"):
        # Only the eager implementation applies the cap on attention logits that Gemma 2 was trained with.
        capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
        try:
            model, info = load(folder, attn_implementation="eager" if capped else GROUPED_ATTENTION, **options)
        except (ValueError, KeyError) as error:  # a model without a choice of attention keeps its own
            if "attention" not in str(error).lower() and GROUPED_ATTENTION not in str(error):
                raise
            model, info = load(folder, **options)
        # The library fills in missing weights at random, and only logs it.
        missing = sorted(info["missing_keys"])
        mismatched = sorted(
            f"{name} ({tuple(there)} in the files, {tuple(wanted)} by the config)"
            for name, there, wanted in info["mismatched_keys"]
        )
        if missing or mismatched:
            raise ValueError(
                f"{len(missing)} weights are missing and {len(mismatched)} have another shape, e.g. "
                f"{(missing + mismatched)[0]}; the model would be random in part. "
                "Are these the files of another architecture?"
            )
        if unused := sorted(name for name in info["unexpected_keys"] if not _may_be_unused(name, config)):
            raise ValueError(
                f"{len(unused)} weights of its files have no place in a {type(model).__name__}, e.g. {unused[0]}; "
                "the model would answer without them. Are these the files of another architecture, or an adapter's?"
            )
        loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _may_be_unused(weight: str, config: PreTrainedConfig) -> bool:
    """Return whether a model's answers to texts do not depend on a weight that its class does not know."""
    sees_or_hears = config.get_text_config(decoder=True) is not config
    return weight.endswith(BUFFERS) or (sees_or_hears and any(sense in weight for sense in SENSES))


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence of a model in tokens; None if its config does not say."""
    positions: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions


def make_savable(model: PreTrainedModel) -> tuple[str, ...]:
    """Unset the generation settings that transformers ignores and refuses to save; return a note of them.

    Raises BackendError for what unsetting does not mend.
    """
    settings: Any = model.generation_config
    ignored: dict[str, Any] = {}
    while True:
        try:
            settings.validate(strict=True)
        except ValueError as error:
            flagged = [name for name in FLAGGED.findall(str(error)) if name not in ignored]
            if not flagged:
                reason = one_line(error, 300)
                raise BackendError(f"the model could not be saved with its generation_config.json: {reason}") from error
            ignored |= {name: getattr(settings, name) for name in flagged}
            for name in flagged:
                setattr(settings, name, None)
        else:
            break
    listed = ", ".join(f"{name} = {value!r}" for name, value in ignored.items())
    note = f"transformers ignores {listed} in the model's generation settings; the checkpoint leaves that out."
    return (note,) if ignored else ()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars, log lines and warnings off the terminal; restore its settings afterwards."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _clear_errors(folder: Path, part: str) -> Iterator[None]:
    """Turn whatever the library raises in the block into a BackendError of one line."""
    try:
        yield
    except Exception as error:  # the library raises everything from KeyError to its own types
        reason = one_line(error, 300)
        if isinstance(error, KeyError):  # a value of the config that the library looked up
            file = f"{'tokenizer_' if part == 'tokenizer' else ''}config.json"
            reason += f" is unknown to this transformers, or missing: a typing error in {file}, or too old a library?"
        raise BackendError(f"the {part} in '{folder}' cannot be loaded: {reason}") from error
