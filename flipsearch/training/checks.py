"""Settings of a training that do not go together, with each other or with what is installed and how it was launched."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from flipsearch.config import TrainConfig
from flipsearch.errors import ConfigError, unknown_name
from flipsearch.training.processes import is_sharded, num_processes

LONGEST_NAME = 200
"""Bytes of a folder's name; ".partial" has to fit behind it."""


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError in one line for settings that cannot be trained with."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError("training is sharded by FSDP 2, not by DeepSpeed: accelerate launch --use_fsdp …")
    if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("training is sharded by FSDP 2 alone: accelerate launch --use_fsdp --fsdp_version 2 …")
    if is_sharded() and config.lora:
        raise ConfigError("--lora trains adapters alone, for which FSDP is not made: launch it without --use_fsdp.")
    if config.backend != "transformers":
        raise ConfigError(f"backend = {config.backend}: training runs on transformers; leave --backend out.")
    _check_name(config.name)
    if (config.method == "sft-teacher") != (config.teacher is not None):
        raise ConfigError("--method sft-teacher and --teacher MODEL (whose answers are learnt) go together.")
    if config.method == "opsa" and not config.forward_weight + config.reverse_weight + config.jensen_shannon_weight:
        raise ConfigError("all divergence weights are 0: there is nothing to learn.")
    if config.dtype == "float16" or config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"dtype = {config.dtype}, device = {config.device}: training knows float32 and bfloat16 on cpu or cuda; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES."
        )
    size, rows, processes = config.train_batch_size or 1, config.micro_batch_size or 1, num_processes()
    if size % (rows * processes):
        parts = f"micro_batch_size {rows}" if processes == 1 else f"{processes} processes of micro_batch_size {rows}"
        raise ConfigError(f"train_batch_size {size} is no multiple of {parts}.")
    if config.lora and not find_spec("peft"):
        raise ConfigError("--lora needs peft: pip install 'flipsearch[lora]'.")
    if config.report_to:
        _check_reporting(config.report_to)


def _check_reporting(names: Sequence[str]) -> None:
    """Refuse what transformers could not report to: it finds that out when the model is loaded."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    ready = {*get_available_reporting_integrations(), "flyte"}  # which it does not list
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            todo = "Leave it out to report nowhere else."
            raise ConfigError(unknown_name("--report-to", name, INTEGRATION_TO_CALLBACK, todo))
        if name not in ready:
            raise ConfigError(
                f"--report-to {name}: its package is not installed or not set up here; do so, or drop it."
            )


def _check_name(name: str | None) -> None:
    if name is None:
        return
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and len(name.encode()) <= LONGEST_NAME
    if not is_plain or name.strip(". ") == "":
        raise ConfigError(f"--name {name[:60]!r}: expected the name of a folder, no path; --checkpoints says where.")
