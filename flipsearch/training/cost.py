"""What a training takes: steps, tokens, hours and memory, from settings, prompts and the headers of its files alone.

Time is that of tokens at a rate that the user knows, or of a short probe: the first steps of the training itself, with
fewer and shorter rows where whole steps would take long, in a folder that is removed. Memory: memory.py.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from flipsearch.backends.chat import Chat
from flipsearch.backends.loading import choose_device, load_tokenizer, memory_bytes
from flipsearch.backends.models import POCKET_MODEL, locate, model_source
from flipsearch.core.errors import ConfigError
from flipsearch.core.files import ShowsFacts, is_taken, take_lock
from flipsearch.core.measurements import json_value
from flipsearch.core.progress import Progress
from flipsearch.core.records import Prompt, Request
from flipsearch.training.checkpoint import ANSWERS_FILE, LOCK, LOG_FILE, CheckpointFolder
from flipsearch.training.log import AnswerLog, read_log
from flipsearch.training.model import StepMemory, head_getter, load_student, num_parameters, step_memory
from flipsearch.training.plan import PAPER, PAPER_STEPS, PAPER_TOKENS, TrainPlan
from flipsearch.training.processes import num_processes
from flipsearch.training.rows import Routing, TrainingRow, own_rows, prompt_lengths
from flipsearch.training.run import run_steps, trainer_of
from flipsearch.training.trainer import NUM_SAVES

LONG_S = 24 * 3600.0
"""A training that takes longer on a CPU deserves a warning."""
CPU_FLOPS = 1e11
"""What a few CPU cores do in a second, before anything is measured."""
MOST_PROMPTS = 512
"""Prompts whose tokens are counted, evenly spaced."""
PROBE_FLOPS = {True: 4e12, False: 4e14}
"""Size of a probe's step on a CPU and on anything else: a minute or less."""
PROBE = ".probe-"
"""How the name of its folder begins."""
PROBE_TOKENS = 64
PROBE_STEPS = 4
"""The first is apart: it takes longer."""


@dataclass(frozen=True, slots=True)
class TrainingTokens:
    """Tokens of a whole training."""

    before: int
    """Written before it, to see which prompts a context flips, or to learn from."""
    rollouts: int
    """Written by the student in its steps."""
    teacher: int
    """Read by the teacher, prompts with contexts included."""
    student: int
    """Read by the student with gradients, prompts included."""


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """What a few steps took here, in seconds."""

    rows: int
    max_tokens: int
    mean_length: float
    """Completion tokens of a row."""
    ended: float
    """Share of the completions that ended by themselves."""
    load_s: float
    answers_s: float
    """To log what the student answers, once."""
    first_s: float
    """What the first step took more than the others."""
    rollout_s: float
    """Per completion token."""
    pass_s: float
    """Per token that the student reads with gradients, or three that the teacher reads."""
    optimizer_s: float
    """Per step."""
    save_s: float
    """Per saved state."""


@dataclass(frozen=True, slots=True, repr=False)
class TrainingCost(ShowsFacts):
    """What a training takes."""

    model: str
    num_prompts: int
    num_steps: int
    step_size: int
    learning_rate: float
    mean_length: float
    """Completion tokens that are expected of a rollout."""
    length_from: str
    """Where that is from: "probe", "ledger", or "limit", as long as it may be."""
    max_tokens: int
    tokens: TrainingTokens
    memory: StepMemory
    available: int
    """Bytes of the device here."""
    device: str
    num_gpus: int
    num_parameters: int
    flops: float
    tokens_per_s: float | None
    """Completion tokens per second of whole steps, as the user says or as measured; None if not known."""
    steps_s: float | None
    """Seconds of all steps, with the states saved between them; None if no rate is known."""
    total_s: float | None
    """Those with loading, logged answers and saving; None without a probe."""
    probe: ProbeTimes | None
    notes: tuple[str, ...]

    @property
    def share_of_paper(self) -> float:
        """Steps times learning rate, as a share of the paper's."""
        return self.num_steps * self.learning_rate / (PAPER_STEPS * PAPER["learning_rate"])

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the device here."""
        return self.memory.peak <= self.available

    @property
    def is_long(self) -> bool:
        """Whether a CPU may take more than a day, at the known rate or at a usual one."""
        usual = self.flops / CPU_FLOPS if self.device == "cpu" and self.model != POCKET_MODEL else 0.0
        return self.device == "cpu" and (self.steps_s or usual) > LONG_S

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        shown = {"model": self.model, "steps": f"{self.num_steps:,} of {self.step_size}"}
        shown["tokens"] = f"{self.tokens.rollouts:,} in rollouts"
        shown |= {"seconds": f"{self.steps_s:,.0f}"} if self.steps_s else {}
        return shown | {"memory per GPU": f"{self.memory.peak / 2**30:.2f} GiB"}

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        paper = {"steps": PAPER_STEPS, "longest": PAPER_TOKENS, "share": self.share_of_paper, **PAPER}
        derived = {"peak_bytes": self.memory.peak, "fits": self.fits, "is_long": self.is_long, "paper": paper}
        return {**json_value(self), **derived}


def training_cost(
    plan: TrainPlan,
    *,
    tokens_per_s: float | None = None,
    measures: bool = False,
    mean_length: float | None = None,
    num_gpus: int = 1,
    progress: Progress | None = None,
) -> TrainingCost:
    """Return what a plan takes; `mean_length` is that of known answers. A model is loaded only where it `measures`."""
    if tokens_per_s is not None and not 0 < tokens_per_s < math.inf:
        raise ConfigError(f"--tokens-per-second is {tokens_per_s:g}, expected a number above 0.")
    if num_gpus < 1:
        raise ConfigError(f"--gpus is {num_gpus}, expected at least 1.")
    for left in _place(plan).glob(f"{PROBE}*/{LOCK}"):  # by a probe that was killed
        if not is_taken(left):
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = locate(model_source(plan.config.model)).folder
    device = choose_device(plan.config.device)
    chat = Chat(load_tokenizer(folder), plan.config.thinking)
    prompts = plan.prompts[:: math.ceil(len(plan.prompts) / MOST_PROMPTS)]
    student, teacher = (prompt_lengths(chat, prompts, routes) for routes in ({}, plan.routes[0]))
    plan = plan.within_length(max(*student, *teacher))
    config, most = plan.config, plan.config.sampling().longest
    size = num_parameters(folder)
    probe = None
    if measures:
        reads = sum(student) / len(student) + sum(teacher) / len(teacher)
        probe = _probe(plan, size, reads, device.type == "cpu", progress)
    length, length_from = float(most), "limit"
    if mean_length:
        length, length_from = min(mean_length, most), "ledger"
    if probe and (probe.max_tokens == most or probe.ended > 0.9):
        length, length_from = probe.mean_length, "probe"
    tokens = _tokens(plan, length, sum(student) / len(student), sum(teacher) / len(teacher))
    saves = (plan.num_steps - 1) // save_steps if (save_steps := _save_steps(plan)) else 0
    learnt = plan.num_steps * (config.train_batch_size or 0) * length
    steps_s = total_s = None
    if tokens_per_s:
        steps_s = learnt / tokens_per_s
    elif probe:
        passes = (tokens.student + tokens.teacher / 3) * probe.pass_s
        work = (tokens.rollouts * probe.rollout_s + passes) / num_gpus + plan.num_steps * probe.optimizer_s
        steps_s = probe.first_s + work + saves * probe.save_s
        logged = 5 * probe.answers_s if config.sample_prompts else 0.0
        before = tokens.before * probe.rollout_s / num_gpus
        total_s = probe.load_s + before + steps_s + logged + probe.save_s
    return TrainingCost(
        model=config.model,
        num_prompts=len(plan.prompts),
        num_steps=plan.num_steps,
        step_size=config.train_batch_size or 0,
        learning_rate=config.learning_rate or 0.0,
        mean_length=round(length, 1),
        length_from=length_from,
        max_tokens=most,
        tokens=tokens,
        memory=step_memory(plan, folder, max(student) + most, num_gpus),
        available=torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_bytes(),
        device=device.type,
        num_gpus=num_gpus,
        num_parameters=size,
        flops=2.0 * size * (tokens.before + tokens.rollouts + tokens.teacher + 3 * tokens.student),
        tokens_per_s=tokens_per_s or (learnt / steps_s if steps_s else None),
        steps_s=steps_s,
        total_s=total_s,
        probe=probe,
        notes=plan.notes,
    )


class _ProbeClock(TrainerCallback):
    """Notes when the parts of each step are done."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def mark(self, event: str) -> None:
        """Note that something is done by now, on the device too."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.setdefault(event, []).append(time.monotonic())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The answers before the first step are logged."""
        self.mark("begin")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All gradients are there."""
        self.mark("gradients")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights are new."""
        self.mark("weights")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """The step is over."""
        if "loss" in logs:
            self.mark("step")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The state is saved."""
        self.mark("saved")


def _probe(plan: TrainPlan, size: int, reads: float, on_cpu: bool, progress: Progress | None) -> ProbeTimes:
    """Return what the first steps of a training take, with fewer rows and tokens where whole ones would take long.

    `reads` are the tokens of a prompt, without and with its context. Fewer rows decode a little slower per token.
    """
    if num_processes() > 1:
        raise ConfigError("--measure runs in one process; launch it without accelerate and torchrun.")
    config = plan.config
    rows, num_tokens = config.train_batch_size or 1, config.sampling().longest

    def flops() -> float:
        return 8.0 * size * rows * (num_tokens + reads)

    if flops() > PROBE_FLOPS[on_cpu]:
        num_tokens = min(num_tokens, PROBE_TOKENS)
    while flops() > PROBE_FLOPS[on_cpu] and rows > 1:
        rows //= 2
    micro = math.gcd(rows, config.micro_batch_size) if config.micro_batch_size else None
    short = {"train_batch_size": rows, "micro_batch_size": micro, "max_tokens": num_tokens, "think_tokens": 0}
    once = {
        "max_steps": PROBE_STEPS,
        "save_steps": PROBE_STEPS if _save_steps(plan) else 0,
        "report_to": (),
        "eval_steps": None,
    }
    with (
        tempfile.TemporaryDirectory(prefix=PROBE, dir=_place(plan)) as temporary,
        closing(take_lock(Path(temporary) / LOCK)),
    ):
        folder, clock, start = CheckpointFolder(Path(temporary) / "probe"), _ProbeClock(), time.monotonic()
        folder.partial.mkdir()
        backend, plan = load_student(replace(plan, config=config.model_copy(update=short | once)))
        head = head_getter(backend.model)
        load_s = time.monotonic() - start
        routing, answers, write_s = Routing(plan.prompts, plan.routes[0]), {}, 0.0
        if plan.method.is_supervised:
            prompts = plan.prompts[:: math.ceil(len(plan.prompts) / rows)][:rows]
            routing, start = replace(routing, prompts=prompts), time.monotonic()
            requests = [Request(prompt, routing.contexts.get(prompt.prompt_id)) for prompt in prompts]
            by_id = {r.prompt_id: r for batch in backend.generate(requests, plan.config.sampling()) for r in batch}
            answers = own_rows(backend.chat, [(prompt, by_id[prompt.prompt_id]) for prompt in prompts])
            write_s = time.monotonic() - start
        trainer = trainer_of(plan, backend, head, routing, answers, folder.partial)
        logged = AnswerLog(trainer, plan.config, folder.partial / ANSWERS_FILE)
        logged.steps = {0}
        usual, steps = trainer.rows, list[Sequence[TrainingRow]]()

        def noted_rows(prompts: Sequence[Prompt]) -> list[TrainingRow]:
            rows = usual(prompts)
            steps.append(rows)
            return rows

        trainer.rows = noted_rows  # type: ignore[method-assign]
        start = time.monotonic()
        run_steps(trainer, logged, folder, progress, clock)
        log = read_log(folder.partial / LOG_FILE)
    times = clock.times
    durations = [end - before for before, end in pairwise([times["begin"][0], *times["step"]])]
    updates = [end - before for before, end in zip(times["gradients"], times["weights"], strict=True)]
    written = [row for step in steps[1:] for row in step]
    num_written = sum(len(row.completion_ids) for row in written)
    is_on_policy = not plan.method.is_supervised
    rollout_s = sum(line["rollout_s"] for line in log[1:]) if is_on_policy else 0.0
    read = sum(len(row.student_ids) + is_on_policy * len(row.teacher_ids) / 3 for row in written)
    read += num_written * (1 + is_on_policy / 3)
    usual_s = sum(durations[1:]) / (PROBE_STEPS - 1)
    return ProbeTimes(
        rows=rows,
        max_tokens=num_tokens,
        mean_length=num_written / len(written),
        ended=sum(row.finish_reason == "stop" for row in written) / len(written),
        load_s=load_s,
        answers_s=times["begin"][0] - start,
        first_s=max(0.0, durations[0] - usual_s),
        rollout_s=rollout_s / num_written
        if is_on_policy
        else write_s / sum(len(a.completion_ids) for a in answers.values()),
        pass_s=(sum(durations[1:]) - rollout_s - sum(updates[1:])) / read,
        optimizer_s=sum(updates[1:]) / (PROBE_STEPS - 1),
        save_s=times["saved"][-1] - times["step"][-1] if "saved" in times else 0.0,
    )


def _place(plan: TrainPlan) -> Path:
    """Return the folder that the checkpoints go to, or the nearest one above it that is there."""
    checkpoints = plan.config.checkpoints
    return next(folder for folder in (checkpoints, *checkpoints.resolve().parents) if folder.is_dir())


def _tokens(plan: TrainPlan, length: float, student: float, teacher: float) -> TrainingTokens:
    """Return the tokens of a training with completions and prompts of these mean lengths."""
    num_rows = plan.num_steps * (plan.config.train_batch_size or 0)
    num_harmful = sum(prompt.kind == "harmful" for prompt in plan.prompts)
    before = len(plan.contexts) * num_harmful if plan.routes_by_answer else 0
    before += len(plan.prompts) if plan.method.is_supervised else 0
    is_on_policy = not plan.method.is_supervised
    return TrainingTokens(
        before=round(before * length),
        rollouts=round(num_rows * length) if is_on_policy else 0,
        teacher=round(num_rows * (teacher + length)) if is_on_policy else 0,
        student=round(num_rows * (student + length)),
    )


def _save_steps(plan: TrainPlan) -> int:
    given = plan.config.eval_steps or plan.config.save_steps
    return math.ceil(plan.num_steps / NUM_SAVES) if given is None else given
