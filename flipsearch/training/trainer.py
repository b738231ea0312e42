"""What all methods share: transformers' training loop over completions, one per prompt and step.

A method subclasses `CompletionTrainer` and says where the completions come from (`rows`) and what their tokens cost
(`loss_of`). The loss is normalised by the completion tokens of the whole step, over micro-batches and processes, so how
a step is divided changes rounding alone. transformers.Trainer does the rest.

Letters in shapes: B rows, T padded tokens of prompt and completion, N completion tokens of a batch, V vocabulary,
H hidden width.
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainingArguments

from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError, TrainingStoppedError
from flipsearch.core.files import write_text
from flipsearch.core.records import Prompt
from flipsearch.training.checkpoint import SavedStates
from flipsearch.training.divergence import Head, PerToken
from flipsearch.training.log import METRIC, StepStats, Validation
from flipsearch.training.model import (
    MOST_ROWS,
    AsTeacher,
    HeadGetter,
    RoundedCopy,
    completion_hidden,
    head_of,
    unwrap,
    without_noise,
)
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import (
    RUN_AGAIN,
    StopSignals,
    all_gather,
    is_main_process,
    is_sharded,
    num_processes,
)
from flipsearch.training.rows import Routes, TokenLayout, TrainingRow, lay_out

FAILED_BATCH = "failed_batch.json"
NUM_SAVES = 5
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""What transformers calls them."""
TokenLoss = Callable[[Tensor, Head], tuple[Tensor, PerToken]]
"""(hidden states (N, H), head) -> the sum of the loss over the tokens, and the values per token."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What a method makes its trainer from."""

    model: Any
    """The student, with its adapters, if it has any."""
    as_teacher: AsTeacher
    """Not for supervised methods."""
    tokenizer: Any
    prompts: tuple[Prompt, ...]
    routes: Routes
    arguments: TrainingArguments
    answers: Mapping[str, TrainingRow] = field(default_factory=dict)
    """Prompt id -> the row of its kept answer, for supervised methods."""
    head_getter: HeadGetter = head_of
    rounded: RoundedCopy | None = None
    """What is run in the model's place; None: the model itself."""
    validation: Validation | None = None

    @property
    def running(self) -> Any:
        """The transformers model that writes completions and whose loss is taken."""
        return self.rounded.rounded if self.rounded else unwrap(self.model)


MakeTrainer = Callable[[TrainingJob, TrainConfig], "CompletionTrainer"]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A micro-batch of rows."""

    rows: Sequence[TrainingRow]
    student: TokenLayout
    targets: Tensor
    """(N,) completion ids, row by row."""
    weights: Tensor
    """(N,) of the tokens."""


class CompletionTrainer(SavedStates):
    """Base of the methods' trainers; TrainingError for a loss that is not finite, with the batch saved."""

    horizon: int | None = None
    """Number of first completion tokens that count; None: all."""

    def __init__(self, job: TrainingJob) -> None:
        super().__init__(
            model=_with_token_loss(job),
            args=job.arguments,
            train_dataset=list(range(len(job.prompts))),
            eval_dataset=[0] if job.validation else None,  # transformers wants one, and `evaluate` reads none
            data_collator=list,  # type: ignore[arg-type]
        )
        # The loss below is the step's own mean already: transformers must not divide it once more.
        self.loss_is_scaled_for_ga, self.model_accepts_loss_kwargs = True, False
        self.job, self.stats, self.stop = job, StepStats(), StopSignals()
        if job.rounded and job.arguments.gradient_checkpointing:
            job.running.gradient_checkpointing_enable()

    def rows(self, prompts: Sequence[Prompt]) -> list[TrainingRow]:
        """Return the completions that this step learns from, one per prompt, in order."""
        raise NotImplementedError

    def loss_of(self, batch: TrainingBatch) -> TokenLoss:
        """Return the batch's loss as a function of the student's hidden states and head."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the steps alone needed."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return a step's micro-batches, of rows of similar length, and its number of tokens over all processes."""
        self._stop_if_signalled()
        if self.control.should_training_stop:  # resumed behind the step that exceeded a cap
            return [], None
        micro_batches = list(itertools.islice(epoch_iterator, num_batches))
        start = time.monotonic()
        if self.job.rounded:
            self.job.rounded.refresh(self.job.model)
        rows = self.rows([self.job.prompts[index] for indices in micro_batches for index in indices])
        self.stats.rollout_s += time.monotonic() - start
        for row in rows:
            self.stats.add_row(row, self.job.routes.get(row.prompt.prompt_id))
        remaining = iter(sorted(rows, key=lambda row: len(row.teacher_ids) + len(row.completion_ids)))
        batches = [self.collate(list(itertools.islice(remaining, len(indices)))) for indices in micro_batches]
        num_tokens = torch.tensor(sum(float(batch.weights.sum()) for batch in batches), device=device)
        return [{"batch": batch} for batch in batches], self.accelerator.reduce(num_tokens, "sum")

    def collate(self, rows: Sequence[TrainingRow]) -> TrainingBatch:
        """Return rows as a batch, the student's prompts in front."""
        completions = [row.completion_ids for row in rows]
        targets = torch.tensor([id for ids in completions for id in ids], dtype=torch.long)
        horizon = math.inf if self.horizon is None else self.horizon
        weights = torch.tensor([float(t < horizon) for ids in completions for t in range(len(ids))])
        return TrainingBatch(rows, lay_out([row.student_ids for row in rows], completions), targets, weights)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the part of the step's mean loss per token that this micro-batch holds."""
        batch: TrainingBatch = inputs["batch"]
        to = self.args.device
        batch = TrainingBatch(batch.rows, batch.student.to(to), batch.targets.to(to), batch.weights.to(to))
        without_noise(self.job.running, self.args.gradient_checkpointing)
        with torch.autocast(to.type, enabled=False):
            loss, *per_token = model(token_loss=self.loss_of(batch), layout=batch.student)
        if not math.isfinite(loss.item()):
            self._stop(loss.item(), batch)
        self.stats.add_tokens(batch.rows, PerToken(*per_token))
        # The processes' gradients are averaged, and the tokens were counted over all of them.
        loss = loss / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return S of the student on prompts that it is not trained on."""
        assert self.job.validation is not None  # or nothing evaluates
        metrics = self.job.validation.evaluate(self)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers would count from fields that our batches do not have."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> "WholeSteps":
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * num_processes()
        return WholeSteps(len(self.job.prompts), size, self.args.data_seed or 0)

    def _stop_if_signalled(self) -> None:
        """Save the state between two steps and raise TrainingStoppedError if a signal came to any of the processes."""
        step, every = self.state.global_step, self.args.save_steps
        if not (names := [name for name in all_gather(self.stop.name) if name]):
            return
        if step and (self.args.save_strategy == "no" or step % every):  # else it was saved as usual
            self._save_checkpoint(self.model, trial=None)
        raise TrainingStoppedError(f"stopped by {names[0]} after {step} of {self.args.max_steps} steps; {RUN_AGAIN}")

    def _stop(self, loss: float, batch: TrainingBatch) -> None:
        prefix = "" if is_main_process() else f"{self.args.process_index}_"
        path = Path(str(self.args.output_dir)) / f"{prefix}{FAILED_BATCH}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in batch.rows]
        write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n", TrainingError)
        raise TrainingError(
            f"the loss is {loss} at step {self.state.global_step}; the batch is saved in '{path}'. "
            "Lower the learning rate."
        )


class WholeSteps(Sampler[int]):
    """Indices of prompts in a new order every epoch, as many as fill whole steps, however a step is divided."""

    def __init__(self, num_prompts: int, step_size: int, seed: int) -> None:
        self.num_prompts, self.seed, self.epoch = num_prompts, seed, 0
        self.length = num_prompts // step_size * step_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the training loop calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.num_prompts, generator=generator)[: self.length].tolist()


def _with_token_loss(job: TrainingJob) -> Any:
    """Let the model's forward take a loss of its hidden states too, so that DDP and FSDP see one forward per step."""
    model = job.running if job.rounded else job.model
    usual = model.forward

    @functools.wraps(usual)
    def forward(
        *args: Any, token_loss: TokenLoss | None = None, layout: TokenLayout | None = None, **options: Any
    ) -> Any:
        if token_loss is None or layout is None:
            return usual(*args, **options)
        with torch.autocast(layout.ids.device.type, enabled=False):  # which FSDP's mixed precision switches on
            loss, per_token = token_loss(completion_hidden(model, layout), job.head_getter(job.running))
        return loss, *per_token

    model.forward = forward
    if job.rounded:
        job.model.forward = functools.partial(job.rounded.run, job.model)
    return job.model


def trainer_arguments(
    plan: TrainPlan, folder: Path, device: torch.device, dtype: torch.dtype, num_prompts: int
) -> TrainingArguments:
    """Return the arguments of a training on those `num_prompts` of the plan's prompts that are left."""
    config = plan.config
    # Fewer prompts may be left than a step was to hold: processes and micro-batches have to divide what is left.
    size = min(config.train_batch_size or num_prompts, num_prompts) // num_processes()  # of each process
    if size == 0:
        raise TrainingError(f"{num_prompts} prompts are left for {num_processes()} processes; start fewer.")
    most = min(size, config.micro_batch_size or MOST_ROWS[device.type == "cpu"])
    rows = next(rows for rows in range(most, 0, -1) if size % rows == 0)
    save_steps = math.ceil(plan.num_steps / NUM_SAVES) if config.save_steps is None else config.save_steps
    more: dict[str, Any] = {"optim": "adamw_bnb_8bit"} if config.optimizer == "adamw-8bit" else {}
    if config.eval_steps:
        save_steps = config.eval_steps  # or there would be no state to go back to
        more |= {"eval_strategy": "steps", "eval_steps": config.eval_steps, "eval_on_start": True}
        more |= {"load_best_model_at_end": True, "metric_for_best_model": METRIC, "greater_is_better": True}
    arguments = TrainingArguments(
        **more,
        output_dir=str(folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=size // rows,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        learning_rate=config.learning_rate or 0.0,
        lr_scheduler_type=SCHEDULERS[config.scheduler],
        warmup_steps=plan.num_warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=dtype is torch.bfloat16 and is_sharded(),
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
