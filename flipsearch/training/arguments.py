"""Our settings as transformers' TrainingArguments."""

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from flipsearch.errors import TrainingError
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import num_processes

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
