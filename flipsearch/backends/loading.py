"""How much memory there is, and what torch says when it runs out.

Calls that wait for something else, made several at once; what is done first is handed out first.

Loading a tokenizer and a causal language model from safetensors, with every failure as one clear line.
"""

import contextlib
import gc
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from flipsearch.backends import cache as attention
from flipsearch.core.errors import BackendError, ConfigError

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""What torch says, in lower case, on a GPU, on a CPU and from a GPU's matrix library."""
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""Where a container says how much memory it may take; "max" is all."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's or the machine's memory ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def memory_bytes() -> int:
    """Return the memory of this machine, or what its container may take."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not told on this system
        machine = 4 * 2**30
    limit = LIMIT_FILE.read_text().strip() if LIMIT_FILE.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def free_memory() -> None:
    """Give back what nothing holds any more, on a GPU the device's memory too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Item = TypeVar("Item")
Result = TypeVar("Result")


def as_completed(work: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> Iterator[list[Result]]:
    """Yield the results of `work` on each item in lists, as soon as there are any, in any order.

    An exception is raised once what else is done has been yielded; nothing new is begun after it, nor once the caller
    stops. The threads are daemons: an interrupted program does not wait for answers that nobody reads.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[list[Result], Exception | None]] = SimpleQueue()
    stopped = Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put(([work(item)], None))
            except Exception as error:  # raised in the caller's thread
                done.put(([], error))

    for _ in range(min(num_threads, len(items))):
        Thread(target=run, daemon=True).start()
    num_left = len(items)
    try:
        while num_left:
            taken = [done.get()]
            while not done.empty():
                taken.append(done.get())
            if results := [result for found, _ in taken for result in found]:
                yield results
            for error in (error for _, error in taken if error):
                raise error
            num_left -= len(taken)
    finally:
        stopped.set()


FLAGGED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""How transformers names the generation settings that it ignores, and for which it refuses to save a model."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> torch.device:
    """Return the device named, "auto" being the first CUDA device if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{device}' cannot be used here; try auto, cpu or cuda.") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype named, "auto" being bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is '{dtype}', expected auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`; BackendError if it cannot be loaded."""
    with quiet(), _clear_errors(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in `folder`, ready to complete prompts; BackendError if it cannot be loaded."""
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    load: Any = AutoModelForCausalLM.from_pretrained
    with quiet(), _clear_errors(folder, "model"):
        try:
            model, info = load(folder, attn_implementation=_attention(folder), **options)
        except ValueError as error:  # a model without a choice of attention keeps its own
            if "attention" not in str(error).lower():
                raise
            model, info = load(folder, **options)
        _check_whole(info)
        module: torch.nn.Module = model
        module.to(device).eval()
    loaded: PreTrainedModel = model
    return loaded


def _attention(folder: Path) -> str:
    """Return how attention is computed: only the plain way knows the cap on its logits that Gemma 2 was made with."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return "eager" if capped else attention.NAME


def _check_whole(info: Mapping[str, Any]) -> None:
    """Raise ValueError unless the files held every weight: the library makes up what is missing, and only logs it."""
    missing, other = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    if missing or other:
        raise ValueError(
            f"{len(missing)} weights are missing and {len(other)} have another shape, e.g. {(missing + other)[0]}; "
            "the model would be random in part. Are these the files of another architecture?"
        )


def make_savable(model: PreTrainedModel) -> tuple[str, ...]:
    """Unset the generation settings that transformers ignores and would not save, and return a note of them.

    Found before a training, not at its first save. Raises BackendError for what is not mended so.
    """
    settings = model.generation_config
    if not (flaw := _flaw(settings)):
        return ()
    ignored = {name: getattr(settings, name) for name in FLAGGED.findall(flaw)}
    for name in ignored:
        setattr(settings, name, None)
    if flaw := _flaw(settings):
        raise BackendError(f"the model could not be saved with its generation_config.json: {_one_line(flaw)}")
    told = ", ".join(f"{name} = {value!r}" for name, value in ignored.items())
    return (f"transformers ignores {told} in the model's generation settings; the checkpoint leaves that out.",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars, log lines and warnings off the terminal; leave its settings as found."""
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
def _clear_errors(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises everything from KeyError to its own types
        reason = _one_line(str(error)) or type(error).__name__
        raise BackendError(f"the {what} in '{folder}' cannot be loaded: {reason}") from error


def _flaw(settings: Any) -> str:
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return str(error)
    return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence that a model holds, in tokens; None if its config does not say."""
    found: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found
