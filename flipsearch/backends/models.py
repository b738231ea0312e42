"""What the name of a model means: a built-in model, a folder, a checkpoint of ours, a hub id, an endpoint."""

import json
import os
from pathlib import Path

from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.package import PACKAGE
from flipsearch.core.trainings import check_format

POCKET_MODEL = "pocket"
TRAINING_FILE = "training.json"
"""What a checkpoint says of its training, the model it was made from among it."""
BUILT_IN_MODELS = {POCKET_MODEL: "the pocket model: tiny, synthetic, ships with the package (no GPU, no download)"}


def model_source(model: str) -> str:
    """Return what a backend loads for `model`: the weights folder of a built-in model, or the name as it is."""
    return str(PACKAGE / "pocket") if model == POCKET_MODEL else model


def base_model(model: str) -> str:
    """Return what a checkpoint of `flipsearch train` was made from in the first place; any other model is its own."""
    seen: list[str] = []
    while model not in BUILT_IN_MODELS and os.path.isfile(path := os.path.join(model, TRAINING_FILE)):
        if model in seen:
            raise BackendError(f"'{path}' leads back to itself: {' -> '.join([*seen, model])}.")
        seen.append(model)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            check_format(content, path)
            named = str(content["model"])
        except (OSError, ValueError, KeyError, RecursionError) as error:
            reason = type(error).__name__
            raise BackendError(f"'{path}' cannot be read ({reason}): no checkpoint of this version.") from error
        # A relative base is meant from the checkpoint's folder first: that holds wherever the command is run.
        beside = os.path.normpath(os.path.join(model, named))
        model = beside if named not in BUILT_IN_MODELS and os.path.isdir(beside) else named
    return model


def list_models() -> dict[str, str]:
    """Return the built-in models, and how to name any other."""
    return BUILT_IN_MODELS | {
        "PATH": "a local folder with config.json, tokenizer and safetensors weights",
        "ORG/NAME[@REVISION]": "a model on the Hugging Face hub, e.g. Qwen/Qwen3-0.6B",
        "http(s)://HOST/v1#NAME": "a model behind an OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY",
    }


def engine_share(backend: str, given: float | None) -> float:
    """Return what a judge's model on a backend takes of what vLLM alone would take of a GPU: 0 on any other backend.

    None is all of it. Raises ConfigError for a share that is none, or where there is nothing to share.
    """
    if given is not None and backend != "vllm":
        raise ConfigError(f"memory_share is for backend vllm, got it for backend {backend}; leave it out.")
    if given is not None and not 0 < given <= 1:
        raise ConfigError(f"memory_share is {given}, expected more than 0 and at most 1.")
    return (1.0 if given is None else given) if backend == "vllm" else 0.0
