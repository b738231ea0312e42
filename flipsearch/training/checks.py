"""Settings of a training that cannot be used here: each is refused in one line before a model is loaded."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.integrations import integration_utils

from flipsearch.backends.base import VLLM
from flipsearch.backends.loading import choose_device
from flipsearch.config import TrainConfig, is_endpoint
from flipsearch.core.errors import ConfigError, one_line, unknown_name
from flipsearch.core.settings import as_typed, check_folder_name
from flipsearch.core.trainings import METHODS
from flipsearch.training.processes import is_sharded, num_processes

LAUNCH = "accelerate launch --use_fsdp --fsdp_version 2 -m flipsearch train, with the same options."
ROLLOUTS = ("auto", "vllm", "transformers")


def check_launch(config: TrainConfig) -> None:
    """Raise ConfigError for a launcher that shards as this training does not, and for steps that it cannot divide."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError(f"training is sharded by FSDP 2, not by DeepSpeed: {LAUNCH}")
    if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(f"training is sharded by FSDP 2 alone: {LAUNCH}")
    if is_sharded() and config.lora:
        raise ConfigError("--lora trains adapters alone, for which FSDP is not made: launch it without --use_fsdp.")
    size, rows, processes = config.train_batch_size or 1, config.micro_batch_size or 1, num_processes()
    if size % (rows * processes):
        parts = f"micro_batch_size {rows}" if processes == 1 else f"{processes} processes of micro_batch_size {rows}"
        raise ConfigError(f"train_batch_size {size} is no multiple of {parts}.")


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError for settings that do not go together, or whose packages or devices are not there."""
    if config.backend != "transformers":
        raise ConfigError(
            f"backend = {config.backend}: training runs on transformers; for rollouts there is --rollouts vllm."
        )
    if config.name is not None:
        check_folder_name("--name", config.name, "--checkpoints")
    method = METHODS[config.method]
    if method.needs_teacher != (config.teacher is not None):
        able = " or ".join(name for name, row in METHODS.items() if row.needs_teacher)
        given = "without" if config.teacher is None else "with"
        raise ConfigError(
            f"--method {config.method} was given {given} a teacher: --teacher MODEL (whose answers are learnt) and "
            f"--method {able} go together."
        )
    weights = (config.forward_weight, config.reverse_weight, config.jensen_shannon_weight)
    if "forward_weight" in method.settings and not any(weights):
        raise ConfigError("all divergence weights are 0: there is nothing to learn.")
    if config.dtype == "float16" or config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"dtype = {config.dtype}, device = {config.device}: training knows float32 and bfloat16 on cpu or cuda; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES."
        )
    if config.lora and not find_spec("peft"):
        raise ConfigError("--lora needs peft: pip install 'flipsearch[lora]'.")
    for name in ("max_over_refusal", "max_contraction"):
        if getattr(config, name) is not None and not config.eval_steps:
            raise ConfigError(f"{as_typed(TrainConfig, name, getattr(config, name))} was given without --eval-steps N.")
    for name in ("lora_alpha", "lora_targets", "quantize"):
        if getattr(config, name) and not config.lora:
            raise ConfigError(f"{as_typed(TrainConfig, name, getattr(config, name))} was given without --lora RANK.")
    for name in ("quantize", "optimizer"):
        value = getattr(config, name)
        if value in ("4bit", "8bit", "adamw-8bit") and not find_spec("bitsandbytes"):
            raise ConfigError(f"--{name} {value} needs bitsandbytes: pip install 'flipsearch[quantize]'.")
    if config.optimizer == "adamw-8bit" and is_sharded():
        raise ConfigError("--optimizer adamw-8bit does not run on shards: leave it out for AdamW in 32 bits.")
    if config.report_to:
        _check_reporting(config.report_to)
    if config.push_to_hub is not None:
        _check_hub(config.push_to_hub)


def _check_hub(name: str) -> None:
    """Raise ConfigError for a repository that cannot be written to: it would be found out only after the training."""
    given, todo = f"--push-to-hub {name}", "leave it out to upload nothing."
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub is '{name}', expected ORG/NAME: {one_line(error, 160)}") from error
    if constants.is_offline_mode():
        raise ConfigError(f"{given}: HF_HUB_OFFLINE is set; unset it, or {todo}")
    if get_token() is None:
        raise ConfigError(f"{given}: there is no token of the hub here; run hf auth login, or {todo}")


def settled_rollouts(config: TrainConfig) -> str:
    """Return which backend writes the rollouts; "auto" is settled here, so that a resume and the record know it."""
    given, is_learnt_from = config.rollouts, "rollouts" in METHODS[config.method].settings
    if is_endpoint(given):
        raise ConfigError(
            f"--rollouts {given}: an endpoint takes no new weights while a model is trained, so that it would soon "
            "answer for another model; give vllm, which runs beside the training, or transformers."
        )
    if given not in ROLLOUTS:
        raise ConfigError(unknown_name("--rollouts", given, ROLLOUTS))
    if given == "vllm" and config.quantize:
        raise ConfigError(
            f"--rollouts vllm would sample from whole weights, and --quantize {config.quantize} trains rounded ones; "
            "give transformers."
        )
    # vLLM takes the device that it was built for and sees.
    is_there = find_spec("vllm") is not None
    can_run = is_there and choose_device(config.device).type == choose_device("auto").type
    if given == "auto":
        is_fast = is_learnt_from and can_run and not config.quantize and choose_device("auto").type == "cuda"
        return "vllm" if is_fast else "transformers"
    if given == "vllm" and not is_learnt_from:
        raise ConfigError(f"--rollouts vllm: --method {config.method} learns from no rollouts; leave it out.")
    if given == "vllm" and not is_there:
        raise ConfigError(f"--rollouts vllm needs a package that is not installed: {VLLM}; or give transformers.")
    if given == "vllm" and not can_run:
        raise ConfigError(f"--rollouts vllm runs on the GPU, and --device is {config.device}; leave one of them out.")
    return given


def _check_reporting(names: Sequence[str]) -> None:
    """Raise ConfigError for what transformers cannot report to: it would find out only with the model loaded."""
    ready = {*integration_utils.get_available_reporting_integrations(), "flyte"}  # which it does not list
    for name in names:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            todo = "Leave it out to report nowhere else."
            raise ConfigError(unknown_name("--report-to", name, integration_utils.INTEGRATION_TO_CALLBACK, todo))
        if name not in ready:
            raise ConfigError(f"--report-to {name}: its package is not installed or set up here; do so, or drop it.")
