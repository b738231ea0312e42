"""Whether a training fits into memory, told before the model is loaded.

Settings of a training that do not go together, with each other or with what is installed and how it was launched.

Our settings as transformers' TrainingArguments.
"""

import json
import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from flipsearch.backends.loading import memory_bytes
from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError
from flipsearch.training.plan import TrainPlan
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


NUM_SAVES = 5
MOST_ROWS = {True: 32, False: 1}
"""Rows a backward pass on a CPU and on anything else, where the user leaves it open: a GPU's memory is dear."""


def trainer_arguments(
    plan: TrainPlan, folder: Path, device: torch.device, dtype: torch.dtype, num_prompts: int
) -> TrainingArguments:
    """Return the arguments of a training on `num_prompts` prompts: those of the plan that are left."""
    config = plan.config
    # Fewer prompts may be left than a batch was to hold: processes and rows have to divide what is left.
    size = min(config.train_batch_size or num_prompts, num_prompts) // num_processes()  # of each process
    if size == 0:
        raise TrainingError(f"{num_prompts} prompts are left for {num_processes()} processes; start fewer.")
    rows = _divisor(size, config.micro_batch_size or MOST_ROWS[device.type == "cpu"])
    save_steps = math.ceil(plan.num_steps / NUM_SAVES) if config.save_steps is None else config.save_steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=size // rows,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        learning_rate=config.learning_rate or 0.0,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup_share * plan.num_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=dtype is torch.bfloat16,
        ddp_find_unused_parameters=False,
        use_cpu=device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        save_strategy="steps" if save_steps else "no",
        save_steps=max(1, save_steps),
        save_total_limit=1,
        report_to=list(config.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:  # one process has one GPU: the library would split the batch over threads
        arguments._n_gpu = 1
    return arguments


def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
