"""What a training holds in memory, from its settings and the headers of the model's files alone.

Bytes per GPU, for P parameters, of which A are adapters, on N GPUs (ZeRO, arXiv 1910.02054, section 3, with this
training's precisions: model.py). s is the size of a number in the model's precision, b the rows of a backward pass, B
those that are decoded at once, T the longest prompt and completion:

    weights      4 P / N in float32, with s P rounded to run; s P for the teacher       LoRA: s P in all, 4 A
    gradients    4 P / N                                                                LoRA: 4 A
    optimizer    8 P / N, AdamW's two moments; 2 P / N in 8 bits                        LoRA: 8 A or 2 A
    activations  s b T (L (6 h + 4 q + 4 i) + 3 h), what a backward pass through L layers of hidden width h, query width
                 q and intermediate width i keeps: both norms' inputs, normalised and scaled values, queries, keys,
                 values and output of attention, and four values of a gated MLP; no scores of attention, which are
                 never whole (cf. arXiv 2205.05198, section 4, which counts 34 h per layer for a GPT in 16 bits).
                 Recomputed (--gradient-checkpointing): s b T (L h + one layer's). Beside it the head's five chunks of
                 logits, and its gradient in float32
    decode cache 2 s L k B T, keys and values of width k, and logits

The peak is weights, gradients and optimizer with the greater of activations and decode cache: they take turns.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flipsearch.backends.colocated import ROLLOUT_SHARE
from flipsearch.backends.loading import choose_device, choose_dtype, load_config, memory_bytes
from flipsearch.backends.transformers import MAX_ROWS
from flipsearch.backends.vllm import GPU_MEMORY
from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError
from flipsearch.training.divergence import CHUNK_BYTES
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import is_sharded, num_processes

WEIGHT_BYTES = 4
MOST_ROWS = {True: 32, False: 1}
"""Rows per backward pass by default, on a CPU and on anything else: a GPU's memory is scarce."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    decode_cache: int

    @property
    def peak(self) -> int:
        """The most at a time: activations and decode cache take turns."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.decode_cache)


def stored_weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield name, shape and precision of each weight in a folder, from the headers of its safetensors files alone."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def check_memory(plan: TrainPlan, folder: Path) -> None:
    """Raise TrainingError if weights, gradients, optimizer and teacher alone cannot fit; rollouts need more."""
    config, device = plan.config, choose_device(plan.config.device)
    held = step_memory(plan, folder, 1, num_processes() if is_sharded() else 1)
    needed = held.weights + held.gradients + held.optimizer
    num = num_parameters(folder)
    if is_sharded():  # the student is whole in float32 before it is sharded, beside its teacher
        dtype = choose_dtype(config.dtype, device)
        needed = max(needed, num * (WEIGHT_BYTES + dtype.itemsize * (not plan.method.is_supervised)))
    available: float = memory_bytes()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        available = free - (GPU_MEMORY * ROLLOUT_SHARE * total if config.rollouts == "vllm" else 0)
    if needed > available:
        todo = "take a smaller model" if config.lora else "give --lora 16, or take a smaller model"
        todo = f"give --rollouts transformers, {todo}" if config.rollouts == "vllm" else todo
        raise TrainingError(
            f"training '{config.model}' ({num / 1e9:.2f} B parameters) takes {needed / 2**30:.1f} GiB for "
            f"weights, gradients, AdamW and teacher, but {device} has {available / 2**30:.1f} GiB; {todo}."
        )


def num_parameters(folder: Path) -> int:
    """Return the parameters of the model in a folder."""
    return sum(math.prod(entry["shape"]) for _, entry in stored_weights(folder))


def step_memory(plan: TrainPlan, folder: Path, longest: int, num_gpus: int) -> StepMemory:
    """Return the memory of a training whose longest prompt and completion have `longest` tokens: the formula above."""
    config, is_supervised = plan.config, plan.method.is_supervised
    device = choose_device(config.device)
    dtype, on_cpu = choose_dtype(config.dtype, device), device.type == "cpu"
    shape: Any = load_config(folder).get_text_config(decoder=True)
    size, num_layers, hidden = dtype.itemsize, shape.num_hidden_layers, shape.hidden_size
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    queries = head * shape.num_attention_heads
    keys = head * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)
    wide = getattr(shape, "intermediate_size", None) or 4 * hidden
    trained = num = num_parameters(folder)
    moments = 2 if config.optimizer == "adamw-8bit" else 2 * WEIGHT_BYTES
    if config.lora:
        trained = _num_adapter_parameters(config, folder)
        weights = size * num + WEIGHT_BYTES * trained
    else:
        teacher = 0 if is_supervised else size * num
        # Sharded weights are gathered for rollouts, others rounded to be run.
        running = size * num if num_gpus > 1 or size != WEIGHT_BYTES else 0
        weights = WEIGHT_BYTES * num // num_gpus + running + teacher
    shards = 1 if config.lora else num_gpus
    batch = math.ceil((config.train_batch_size or 1) / num_gpus)
    rows = min(config.micro_batch_size or MOST_ROWS[on_cpu], batch)
    layer = 6 * hidden + 4 * queries + 4 * wide
    kept = num_layers * hidden + layer if config.gradient_checkpointing else num_layers * layer
    embeddings = 0 if config.lora else WEIGHT_BYTES * shape.vocab_size * hidden
    cached = 2 * size * num_layers * keys * longest + WEIGHT_BYTES * shape.vocab_size
    return StepMemory(
        weights=weights,
        gradients=WEIGHT_BYTES * trained // shards,
        optimizer=moments * trained // shards,
        activations=size * rows * longest * (kept + 3 * hidden) + 5 * CHUNK_BYTES + embeddings,
        decode_cache=0 if is_supervised else min(batch, config.batch_size or MAX_ROWS[on_cpu]) * cached,
    )


def _num_adapter_parameters(config: TrainConfig, folder: Path) -> int:
    """Return the parameters of the adapters, by the shapes of the layers that have them."""
    num = 0
    for name, entry in stored_weights(folder):
        layer = name.removesuffix(".weight")
        is_target = any(layer == target or layer.endswith(f".{target}") for target in config.lora_targets)
        is_inner = ".layers." in name or ".h." in name
        if len(entry["shape"]) == 2 and (is_target if config.lora_targets else is_inner):
            num += config.lora * sum(entry["shape"])
    return num
