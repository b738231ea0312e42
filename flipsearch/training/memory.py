"""Whether a training fits into memory, told before the model is loaded."""

import json
import math
from pathlib import Path

import torch

from flipsearch.backends.memory import memory_bytes
from flipsearch.config import TrainConfig
from flipsearch.errors import TrainingError
from flipsearch.training.processes import is_sharded, num_processes

WEIGHT_BYTES = 4
FULL_BYTES = WEIGHT_BYTES + 4 + 4 + 4
"""A trained parameter: the weight, its gradient and AdamW's two moments, in float32."""


def check_memory(folder: Path, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise TrainingError if weights, gradients, optimizer and teacher alone cannot fit; rollouts need more."""
    num_parameters = count_parameters(folder)
    needed, free = num_parameters * _bytes_a_parameter(config, dtype), _free_bytes(device)
    if needed > free:
        todo = "take a smaller model" if config.lora else "give --lora 16, or take a smaller model"
        raise TrainingError(
            f"training '{config.model}' ({num_parameters / 1e9:.2f} B parameters) takes {needed / 2**30:.1f} GiB for "
            f"weights, gradients, AdamW and teacher, but {device} has {free / 2**30:.1f} GiB; {todo}."
        )


def _bytes_a_parameter(config: TrainConfig, dtype: torch.dtype) -> float:
    if config.lora:  # the teacher is the model without its adapters
        return dtype.itemsize
    if not is_sharded():
        return dtype.itemsize + FULL_BYTES
    # The student is whole twice: in float32 before it is sharded, and beside its shard while it samples.
    return dtype.itemsize + max(WEIGHT_BYTES, FULL_BYTES / num_processes() + dtype.itemsize)


def count_parameters(folder: Path) -> int:
    """Return the number of values in a folder's safetensors files, from their headers alone."""
    return sum(
        math.prod(tensor["shape"])
        for path in folder.glob("*.safetensors")
        for name, tensor in _header(path).items()
        if name != "__metadata__"
    )


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, list[int]]] = json.loads(file.read(size))
    return header


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()
