"""On-Policy Self-Alignment: the model learns from its own rollouts what it would do under a safety context.

Source: arXiv 2605.15239, Eq. 2. In every optimizer step
1. the student samples a completion of each prompt, without any context, as it will be used;
2. the frozen teacher (the student's own initial copy) reads the same completion ids under the context of the prompt's
   label: the safety context for harmful prompts, the benign context for benign ones;
3. at every completion token the divergence between the two next-token distributions is taken (divergence.py);
4. its mean over all completion tokens of the step, over micro-batches and processes, is minimised through the student.

transformers.Trainer does the rest: accumulation, precision, clipping, schedule, processes, saving and resuming.
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from flipsearch.backends.chat import Thinking
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import TrainingError
from flipsearch.core.records import Prompt, Request, Sampling
from flipsearch.training.divergence import Divergence, PerToken, divergence_sum
from flipsearch.training.heads import AsTeacher, completion_hidden, head_of, plain
from flipsearch.training.processes import is_main_process, num_processes, whole_weights
from flipsearch.training.rows import Layout, Routes, Row, lay_out, make_row
from flipsearch.training.stats import StepStats

FAILED_BATCH = "failed_batch.json"
LossOf = Callable[[Tensor, Tensor], tuple[Tensor, PerToken]]
"""(hidden states (N, H), head (V, H)) -> the sum of the loss, and what is known of every token."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained on, and how the loss is taken."""

    prompts: tuple[Prompt, ...]
    """One rollout each an epoch."""
    routes: Routes
    """Prompt id -> the context of its label."""
    sampling: Sampling
    """How the student samples."""
    divergence: Divergence = field(default_factory=Divergence)
    horizon: int | None = None
    """Only the first so many completion tokens count; None counts all."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of rows."""

    rows: Sequence[Row]
    student: Layout
    """Without context."""
    teacher: Layout | None
    """Under the context; None where no teacher is asked."""
    targets: Tensor
    """(N,) completion ids, row by row."""
    weights: Tensor
    """(N,) what each token counts."""


class OpsaTrainer(Trainer):
    """Sampling and loss of OPSA inside transformers' training loop.

    `as_teacher` opens a block in which the frozen teacher can be asked. Raises TrainingError for a loss that is not
    finite, with the batch saved beside the checkpoints.
    """

    def __init__(
        self,
        model: Any,
        as_teacher: AsTeacher,
        tokenizer: Any,
        job: Job,
        args: TrainingArguments,
        thinking: Thinking = "auto",
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=_with_loss(model),
            args=args,
            train_dataset=list(range(len(job.prompts))),
            data_collator=list,  # type: ignore[arg-type]
            callbacks=list(callbacks),
        )
        self.loss_is_scaled_for_ga, self.model_accepts_loss_kwargs = True, False
        self.trained = model
        """The model with its adapters, if it has any."""
        self.job, self.stats = job, StepStats()
        self.student = TransformersBackend.around(plain(model), tokenizer, thinking=thinking)
        self.as_teacher = as_teacher

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step, sampled together, and their number of tokens over all processes."""
        drawn = [indices for _, indices in zip(range(num_batches), epoch_iterator, strict=False)]
        start = time.monotonic()
        rows = self.rows([self.job.prompts[index] for indices in drawn for index in indices])
        self.stats.rollout_s += time.monotonic() - start
        for row in rows:
            self.stats.add_row(row, self.job.routes.get(row.prompt.prompt_id))
        # Rows of like length together: little padding. Their order within a step changes nothing but rounding.
        rows = sorted(rows, key=lambda row: len(row.teacher_ids) + len(row.completion_ids))
        sizes = [len(indices) for indices in drawn]
        ends = list(itertools.accumulate(sizes))
        batches = [self.collate(rows[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        num_tokens = torch.tensor(sum(float(batch.weights.sum()) for batch in batches), device=device)
        return [{"batch": batch} for batch in batches], self.accelerator.reduce(num_tokens, "sum")

    def _get_train_sampler(self, train_dataset: Any = None) -> "WholeSteps":
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * num_processes()
        return WholeSteps(len(self.job.prompts), size, self.args.data_seed or 0)

    def rows(self, prompts: Sequence[Prompt]) -> list[Row]:
        """Return what the student writes to each prompt now, as rows."""
        step = self.state.global_step
        requests = [Request(prompt, sample_index=step) for prompt in prompts]
        self.student.model.eval()
        with whole_weights(self.model, self.accelerator):
            batches = self.student.generate(requests, self.job.sampling)
            found = {rollout.prompt_id: rollout for batch in batches for rollout in batch}
        for rollout in found.values():
            if rollout.finish_reason == "error":
                raise TrainingError(f"step {step}: a rollout failed: {rollout.error}.")
        return [
            make_row(self.student.chat, prompt, self.job.routes, r.completion_ids, r.finish_reason, r.completion)
            for prompt in prompts
            for r in (found[prompt.prompt_id],)
        ]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Lay rows out for both sides."""
        completions = [row.completion_ids for row in rows]
        return Batch(
            rows,
            lay_out([row.student_ids for row in rows], completions),
            self.teacher_layout(rows),
            torch.tensor([id for ids in completions for id in ids], dtype=torch.long),
            torch.tensor([self.weight(t) for ids in completions for t in range(len(ids))]),
        )

    def teacher_layout(self, rows: Sequence[Row]) -> Layout | None:
        """Return the same completions behind the prompts that the teacher reads."""
        return lay_out([row.teacher_ids for row in rows], [row.completion_ids for row in rows])

    def weight(self, position: int) -> float:
        """Return what the completion token at `position` counts."""
        return float(self.job.horizon is None or position < self.job.horizon)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the part of the step's mean divergence that this micro-batch holds."""
        batch: Batch = inputs["batch"]
        device = self.args.device
        loss_of = self.loss_of(replace(batch, weights=batch.weights.to(device), targets=batch.targets.to(device)))
        loss, *per_token = model(flipsearch_loss=loss_of, layout=batch.student.to(device))
        self.check_finite(loss, batch)
        self.stats.add_tokens(batch.rows, PerToken(*per_token))
        # The processes' gradients are averaged, and the tokens were counted over all of them.
        loss = loss / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def loss_of(self, batch: Batch) -> "LossOf":
        """Return the loss as a function of the student's hidden states (N, H) and head (V, H)."""
        assert batch.teacher is not None
        with torch.no_grad(), self.as_teacher() as teacher:
            hidden = completion_hidden(teacher, batch.teacher.to(self.args.device))  # (N, H)
            head = head_of(teacher)
        return lambda student, own_head: divergence_sum(
            student, own_head, hidden, head, batch.weights, self.job.divergence
        )

    def check_finite(self, loss: Tensor, batch: Batch) -> None:
        """Stop with the step and the batch saved if the loss is not a number."""
        if math.isfinite(loss.item()):
            return
        own_name = FAILED_BATCH if is_main_process() else f"{self.args.process_index}_{FAILED_BATCH}"
        path = Path(str(self.args.output_dir)) / own_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps([asdict(row) for row in batch.rows], ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        raise TrainingError(
            f"the loss is {loss.item()} at step {self.state.global_step}; the batch is saved in '{path}'. "
            "Lower the learning rate."
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers would count from fields that our batches do not have."""
        return 0


class WholeSteps(Sampler[int]):
    """Prompts in a new order every epoch, cut to whole steps: how a step is divided cannot change what it holds."""

    def __init__(self, num_prompts: int, step_size: int, seed: int) -> None:
        self.num_prompts, self.seed, self.epoch = num_prompts, seed, 0
        self.length = num_prompts // step_size * step_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the training loop calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the prompts of an epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Yield indices of prompts."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.num_prompts, generator=generator)[: self.length].tolist()


def _with_loss(model: Any) -> Any:
    """Let the model's forward take a loss of its hidden states too, so that DDP and its kin see one forward a step."""
    usual = model.forward

    @functools.wraps(usual)
    def forward(*args: Any, flipsearch_loss: LossOf | None = None, layout: Layout | None = None, **options: Any) -> Any:
        if flipsearch_loss is None or layout is None:
            return usual(*args, **options)
        hidden, head = _in_autocast_dtype(completion_hidden(model, layout), head_of(model))
        # The loss chooses its precisions itself: autocast would round its logits.
        with torch.autocast(hidden.device.type, enabled=False):
            loss, per_token = flipsearch_loss(hidden, head)
        return loss, *per_token

    model.forward = forward
    return model


def _in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """Weights are kept in float32 under autocast, and multiplied in its lower precision."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
