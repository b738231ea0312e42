"""Loads tokenizers and causal language models from safetensors, checked, with every failure as one clear line.

Whole architectures silently decode wrongly when their state is passed under another name, or when padding shifts
their positions. So the way of decoding is found by a test: batches with shared prefixes, else one prompt at a time
with the model's own cache, else no cache at all; the first one whose logits are those of a plain forward is taken. A
model that agrees with itself in none is refused. What was found is kept in the cache by content and versions.

Also what is known of the machine: its devices, its memory, and how torch says that it ran out.
"""

import contextlib
import gc
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from flipsearch.backends.base import end_ids
from flipsearch.backends.cache import GROUPED_ATTENTION
from flipsearch.backends.chat import Chat
from flipsearch.backends.decoding import Decoder, DecodingPath, Ids, shared_prefixes
from flipsearch.backends.models import BUILT_IN_MODELS, ModelFiles, locate, model_source
from flipsearch.backends.quantized import multiply_dequantized, quantization_options
from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, ConfigError, one_line
from flipsearch.core.files import cache_folder, package_versions, write_text
from flipsearch.core.progress import announce
from flipsearch.core.records import Sampling, content_id
from flipsearch.core.settings import Quantize

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""Parts of torch's messages, in lower case, on a GPU, on a CPU and from a GPU's matrix library."""
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""A container's memory limit in bytes; "max" is no limit."""
BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
"""Ends of the names of what older files hold beside weights: every model computes these anew."""
SENSES = ("vision", "visual", "image", "audio", "speech", "multi_modal", "mm_", "projector")
"""Parts of the names of weights that only images and audio pass through."""
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


def release_memory() -> None:
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


def prepare_local_model(config: ModelConfig) -> None:
    """Check device and precision, and fetch a model of the hub: what is wrong is said before anything else is done."""
    choose_dtype(config.dtype, choose_device(config.device))
    if config.model not in BUILT_IN_MODELS and not Path(config.model).expanduser().exists():
        local_identity(config)


def local_identity(config: ModelConfig) -> str:
    """Return what changes whenever the `model_id` of a local or hub model does; no weights are loaded."""
    fingerprint = locate(model_source(config.model)).fingerprint
    dtype = choose_dtype(config.dtype, choose_device(config.device))
    return content_id("model", config.backend, fingerprint, config.thinking, str(dtype))


def known_sampling(config: ModelConfig) -> Sampling | None:
    """Return how a model in a folder of this machine is sampled, by its chat template; None for any other model."""
    folder = None if is_endpoint(config.model) else Path(model_source(config.model)).expanduser()
    if folder is None or not folder.is_dir() or config.backend not in ("transformers", "vllm"):
        return None
    return config.sampling(thinks=Chat(load_tokenizer(folder), config.thinking).thinks)


def transformers_identity(files: ModelFiles, chat: Chat, dtype: torch.dtype, quantize: str | None = None) -> str:
    """Return the `model_id` of a model on the transformers backend."""
    return content_id("model", files.fingerprint, chat.identity, str(dtype), *filter(None, [quantize]))


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`; BackendError if it cannot be loaded."""
    announce(f"loading the tokenizer of {folder.name}")
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


def model_class(config: PreTrainedConfig) -> Any:
    """Return what loads the models of a config; BackendError for one that continues no text."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:  # some that see pictures, too, are known by that alone
        return AutoModelForImageTextToText
    raise BackendError(f"a model of type {config.model_type} does not continue a text; use one that does.")


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, quantize: Quantize | None = None
) -> PreTrainedModel:
    """Return the model in `folder` in evaluation mode; BackendError if it cannot be loaded completely."""
    announce(f"loading the weights of {folder.name}")
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    options |= {"trust_remote_code": False, "local_files_only": True}
    if quantize:
        options |= quantization_options(quantize, device, dtype)
    config = load_config(folder)
    with quiet(), _clear_errors(folder, "model"):
        kind = model_class(config)
        # Weights of another shape are refused below, with their names; the library would point at its log.
        options["ignore_mismatched_sizes"] = True
        # Only the eager implementation applies the cap on attention logits that Gemma 2 was trained with.
        capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
        try:
            attention = "eager" if capped else GROUPED_ATTENTION
            model, info = kind.from_pretrained(folder, attn_implementation=attention, **options)
        except (ValueError, KeyError) as error:  # a model without a choice of attention keeps its own
            if "attention" not in str(error).lower() and GROUPED_ATTENTION not in str(error):
                raise
            model, info = kind.from_pretrained(folder, **options)
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
        # On what only pictures and sounds pass through, answers to texts do not depend.
        spare = SENSES if config.get_text_config(decoder=True) is not config else ()
        unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith(BUFFERS))
        if unused := [name for name in unexpected if not any(sense in name for sense in spare)]:
            raise ValueError(
                f"{len(unused)} weights of its files have no place in a {type(model).__name__}, e.g. {unused[0]}; "
                "the model would answer without them. Are these the files of another architecture, or an adapter's?"
            )
        if quantize:
            multiply_dequantized(model)
        return cast(PreTrainedModel, (model if quantize else model.to(device)).eval())


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence of a model in tokens; None if its config does not say."""
    positions: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions


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


CHECK_VERSION = 1
"""Part of what a kept result holds for."""
TEXTS = (
    "How do I boil an egg?",
    "Tell me a long story about a garden, a river, a bridge and an old clock, which begins in the morning.",
    "What is the sum of 17 and 25?",
    "Name a colour.",
)
SHARED_TEXT = "You are a careful assistant. Think what the request is for. "
NEW_TOKENS = 4
ENDS_AT = 1
"""Step at which one row of a batch is made to end, so that rows leave the batch and its cache."""
TOLERANCES = {torch.float32: 2e-3, torch.float16: 0.03, torch.bfloat16: 0.08}
"""Largest error of the logits, relative to their spread; below float32 the median over a row's steps is compared,
because rounding can send a token to another expert."""
PATH_NOTES = {
    DecodingPath.BATCHED: (),
    DecodingPath.ALONE: ("this model decodes correctly only one prompt at a time, which is slow.",),
    DecodingPath.UNCACHED: (
        "this model decodes correctly only without a cache: all is recomputed for each token, which is very slow.",
    ),
}


def load_checked_model(
    files: ModelFiles, tokenizer: Any, device: torch.device, dtype: torch.dtype, quantize: Quantize | None = None
) -> PreTrainedModel:
    """Return a loaded model with its correct way of decoding recorded on it; BackendError if there is none."""
    announce("checking the vocabulary")
    check_vocabulary(tokenizer, files.folder)
    model = load_model(files.folder, device, dtype, quantize)
    versions = package_versions(("torch", "transformers"))
    key = content_id("check", CHECK_VERSION, files.fingerprint, str(dtype), device.type, sorted(versions.items()))
    kept = cache_folder("checks") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        DecodingPath(json.loads(kept.read_text(encoding="utf-8"))["path"]).keep_on(model)
        return model
    announce("checking that it decodes correctly in batches; done once per model")
    try:
        path = find_path(model, tokenizer)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        raise BackendError(
            f"the model in '{files.folder}' fits on {device}, but leaves no memory for four short prompts; "
            "give a smaller model, or another --dtype."
        ) from error
    path.keep_on(model)
    with contextlib.suppress(BackendError):  # a cache that cannot be written costs a second at each start
        write_text(kept, json.dumps({"path": path.value}), BackendError)
    return model


def check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Raise BackendError if the tokenizer or the settings name an id for which the model has no embedding."""
    num_rows = getattr(load_config(folder).get_text_config(decoder=True), "vocab_size", None)
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    if isinstance(num_rows, int) and vocabulary[last] >= num_rows:
        raise BackendError(
            f"the tokenizer in '{folder}' has token ids up to {vocabulary[last]} ({last!r}), but the model has "
            f"embeddings for {num_rows} only: they are not of one model, or tokens were added to the tokenizer alone; "
            "resize the model's embeddings (resize_token_embeddings) and save it again."
        )
    ends = end_ids(load_generation_settings(folder), tokenizer)
    if isinstance(num_rows, int) and (odd := sorted(id for id in ends if not 0 <= id < num_rows)):
        raise BackendError(
            f"the model in '{folder}' is to end with token {odd[0]}, but its tokens are 0 to {num_rows - 1}: no answer "
            "would end there; fix eos_token_id in its generation_config.json or config.json."
        )


def find_path(model: PreTrainedModel, tokenizer: Any) -> DecodingPath:
    """Return the fastest way of decoding whose logits are those of a plain forward; BackendError if there is none."""
    # With the special tokens that the tokenizer adds by itself: some models need their begin token.
    prompts = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    shared = [list(tokenizer(SHARED_TEXT + text)["input_ids"]) for text in TEXTS]
    name = type(model).__name__
    try:
        plain = plain_logits(model, prompts[1])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BackendError(f"{name} cannot compute a prompt: {type(error).__name__}: {one_line(error)}.") from error
    if not bool(plain.amax(-1).isfinite().all()):
        raise BackendError(
            f"the logits of {name} are not finite numbers: its weights are damaged, or too large for "
            f"{str(model.dtype).removeprefix('torch.')}; download it again, or give another --dtype."
        )
    for path in DecodingPath:
        decoder = Decoder(model, {int(plain[-1].argmin())}, path)
        with contextlib.suppress(DisagreementError):
            # The longest alone, all four in a batch, and four that begin alike.
            for batch in ([prompts[1]], prompts, shared) if path is DecodingPath.BATCHED else (prompts,):
                _compare(decoder, batch)
            return path
    raise BackendError(
        f"{name} does not decode as its own forward says, in batches, alone or without a cache; "
        "use another model, or --backend vllm."
    )


def plain_logits(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    """Return the float32 logits (T, V) of one sequence, computed without batch, padding, positions and cache."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    return logits[0].float()


class DisagreementError(Exception):
    """A way of decoding gives other logits than a plain forward, or cannot be taken at all."""


def _compare(decoder: Decoder, prompts: Sequence[Ids]) -> None:
    """Raise DisagreementError unless greedy decoding has the logits of a plain forward at every step."""
    seen: list[list[torch.Tensor]] = [[] for _ in prompts]

    def choose(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        for row, row_logits in zip(rows.tolist(), logits, strict=True):
            seen[row].append(row_logits)
        ends = (rows == 1) & (step == ENDS_AT and len(prompts) > 1)
        return torch.where(ends, decoder.eos_ids[0], logits.argmax(-1))

    try:
        completions = decoder.complete(prompts, shared_prefixes(prompts, [0] * len(prompts)), NEW_TOKENS, choose)
    except Exception as error:  # models raise whatever a cache of another kind makes them do
        if is_out_of_memory(error):
            raise
        raise DisagreementError from error
    for prompt, completion, steps in zip(prompts, completions, seen, strict=True):
        if completion is None:
            raise DisagreementError
        expected = plain_logits(decoder.model, [*prompt, *completion])[len(prompt) - 1 : -1]
        errors = _relative_errors(torch.stack(steps[: len(completion)]), expected)
        largest = float(errors.max() if decoder.model.dtype == torch.float32 else errors.median())
        if not largest <= TOLERANCES.get(decoder.model.dtype, 0.05):
            raise DisagreementError


def _relative_errors(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return for each step (C,) the error of `logits` (C, V) as a share of the spread of the `expected` ones."""
    possible = expected.isfinite()  # some models rule tokens out with -inf
    error = torch.where(possible, logits - expected, 0)
    spread = torch.where(possible, expected - torch.where(possible, expected, 0).mean(-1, keepdim=True), 0)
    relative: torch.Tensor = error.norm(dim=-1) / spread.norm(dim=-1)
    return relative
