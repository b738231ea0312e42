"""What a training logs while it runs: statistics per step and label in log.jsonl, and the progress bar.

A line is for all processes together. A resumed training drops the lines after its last state. Statistics by position
count completion tokens: "early" are the first EARLY, where the paper's Figure 2 peaks, "late" those from LATE on.

What the student answers to a few fixed prompts while it is trained: answers.jsonl, one line per logged step.

Decoding is greedy and samples nothing, and it has a backend of its own, so that memory that runs out here
changes no batch of the training: its weights are those of a training that logs no answers. The line of a step is
written before the trainer's state of that step; a resumed training drops later ones and writes a missing one. The
judge sees the answers when the weights are done and memory is free.

What it does to prompts that it does not learn from, every few steps (`Validation`), to keep its best state and to stop:

    student --greedy answers--> judge --S, over-refusal, contraction--> best state so far; stop?

S is that of OPSA, Eq. 6, on these prompts: 1 minus the mean of harmful rate and over-refusal. Refusals and contraction
are compared with the answers before the first step. Answers are kept with their verdicts in validation.jsonl, a line
per evaluated step: a resumed training reads them there.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from transformers import TrainerCallback

from flipsearch.backends.loading import release_memory
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import TrainConfig
from flipsearch.core.errors import FlipsearchError, TrainingError
from flipsearch.core.files import write_text
from flipsearch.core.measurements import REFUSAL_THRESHOLD
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Exchange, Kind, Label, Prompt, Request, Sampling, Verdict
from flipsearch.core.thoughts import split_answer
from flipsearch.core.trainings import JudgedAnswer, LoggedAnswer, LogLine
from flipsearch.judging.contract import judge_answers
from flipsearch.judging.library import unload
from flipsearch.measuring.measure import contraction
from flipsearch.measuring.runner import sampling_for
from flipsearch.training.checkpoint import save_errors_as_one_line
from flipsearch.training.divergence import PerToken
from flipsearch.training.processes import all_gather, broadcast_from_main, is_main_process, whole_weights
from flipsearch.training.rows import TrainingRow

STEP_KEYS = ("loss", "grad_norm", "learning_rate")
NEEDED_KEYS = ("step", "step_s", "num_rollouts", "num_tokens")
EARLY, LATE, FIRST = 10, 30, 30
LEAK_WORDS = 5
"""Consecutive words of the context in a completion that count as a leak: the student writes without the context."""


@dataclass(slots=True)
class StepStats:
    """Sums over the rows of one optimizer step, by label."""

    rollout_s: float = 0.0
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    values: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def merged(cls, parts: Sequence["StepStats"]) -> "StepStats":
        """Return the statistics of a step from those of several processes; its sampling took as long as the slowest."""
        whole = cls()
        for part in parts:
            for name, count in part.counts.items():
                whole.counts[name] += count
            for kind, lengths in part.lengths.items():
                whole.lengths[kind] += lengths
            for name, values in part.values.items():
                whole.values[name] += values
            whole.rollout_s = max(whole.rollout_s, part.rollout_s)
        return whole

    def add_row(self, row: TrainingRow, context: Context | None) -> None:
        """Count a row's length, its end, and whether it leaks the context of its prompt."""
        kind = row.prompt.kind
        self.lengths[kind].append(len(row.completion_ids))
        self.counts[f"ended_{kind}"] += row.finish_reason == "stop"
        self.counts[f"truncated_{kind}"] += row.finish_reason == "length"
        self.counts[f"leaks_{kind}"] += context is not None and is_leak(row.completion, context.text)

    def add_tokens(self, rows: Sequence[TrainingRow], per_token: PerToken) -> None:
        """Add what the loss computed per completion token of `rows`, row by row."""
        divergence, mass, entropy = (values.detach().cpu() for values in per_token)
        start = 0
        for row in rows:
            end = start + len(row.completion_ids)
            own, kind = divergence[start:end], row.prompt.kind
            for name, values in (("", own), ("_early", own[:EARLY]), ("_late", own[LATE:])):
                self.values[f"divergence{name}_{kind}"].append(values)
            self.values[f"entropy_first_{kind}"].append(entropy[start : start + FIRST][: end - start])
            self.values["teacher_mass"].append(mass[start:end])
            start = end

    def summary(self) -> dict[str, float]:
        """Return the means and rates of everything added; what did not occur is left out."""
        all_lengths = [length for lengths in self.lengths.values() for length in lengths]
        summary: dict[str, float] = {"num_rollouts": len(all_lengths), "num_tokens": sum(all_lengths)}
        summary["rollout_s"] = self.rollout_s
        for kind, lengths in sorted(self.lengths.items()):
            ordered, n = sorted(lengths), len(lengths)
            summary |= {
                f"num_{kind}": n,
                f"length_mean_{kind}": sum(lengths) / n,
                f"length_p95_{kind}": ordered[min(n - 1, int(0.95 * n))],
                f"eos_rate_{kind}": self.counts[f"ended_{kind}"] / n,
                f"truncation_rate_{kind}": self.counts[f"truncated_{kind}"] / n,
                f"leakage_rate_{kind}": self.counts[f"leaks_{kind}"] / n,
            }
        joined = {name: torch.cat(parts) for name, parts in sorted(self.values.items())}
        summary |= {name: values.mean().item() for name, values in joined.items() if len(values)}
        return {name: round(value, 6) for name, value in summary.items()}


def is_leak(completion: str, context: str) -> bool:
    """Return whether a completion repeats LEAK_WORDS consecutive words of the context, or all where it has fewer."""
    words = context.lower().split()
    text = " ".join(completion.lower().split())
    size = min(LEAK_WORDS, len(words))
    return size > 0 and any(" ".join(words[i : i + size]) in text for i in range(len(words) - size + 1))


class StepLog(TrainerCallback):
    """Writes one line per step from a trainer's `stats` (StepStats), which it replaces, and reports progress.

    The answers that are logged meanwhile count in no step's time.
    """

    def __init__(self, trainer: Any, path: Path, progress: Progress | None, answers: "AnswerLog") -> None:
        self.trainer, self.path, self.progress, self.answers = trainer, path, progress, answers
        self.num_rollouts = self.num_tokens = 0
        self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps that will be done again."""
        if is_main_process():
            kept = [line for line in read_log(self.path) if line["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept), TrainingError)
        self._log_answers(state, self.answers.begin)
        self.last = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the line of a step, of all processes together, and the answers after it."""
        if "loss" not in logs:  # the summary at the end
            return
        stats, self.trainer.stats = StepStats.merged(all_gather(self.trainer.stats)), StepStats()
        if is_main_process():
            self._write(state, logs, stats)
        self._log_answers(state, self.answers.log)
        self.last = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation counts in no step's time."""
        self.last = time.monotonic()

    def _write(self, state: Any, logs: Any, stats: StepStats) -> None:
        line = {"step": state.global_step, "epoch": state.epoch}
        line |= {key: float(logs[key]) for key in STEP_KEYS if key in logs}
        line |= {"step_s": round(time.monotonic() - self.last, 6), **stats.summary()}
        # JSON knows no NaN: what is not finite is null.
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in line.items()}
        with save_errors_as_one_line(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self.num_rollouts += int(line["num_rollouts"])
        self.num_tokens += int(line["num_tokens"])
        self._report(state)

    def _log_answers(self, state: Any, log: Callable[[int], None]) -> None:
        if self.answers.is_due(state.global_step):
            self._report(state, "(logging answers)")
        log(state.global_step)

    def _report(self, state: Any, detail: str = "") -> None:
        if self.progress is not None:
            step = Step(Phase.TRAINING, detail, Activity.TRAINING)
            self.progress(step, state.global_step, state.max_steps, self.num_rollouts, self.num_tokens)


def read_log(path: Path) -> Sequence[LogLine]:
    """Return the lines of a log, none if there is no log; a last line that was cut off in writing is dropped."""
    lines: list[LogLine] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not all(isinstance(line.get(key), int | float) for key in NEEDED_KEYS):
            break
        lines.append(line)
    return lines


NUM_PARTS = 4
"""Answers are logged before the training and after each of this many parts of it."""
_LINE = TypeAdapter(tuple[LoggedAnswer, ...])


class AnswerLog:
    """Logs the answers of a trainer's student to the first prompts of each kind."""

    def __init__(self, trainer: Any, config: TrainConfig, path: Path) -> None:
        self.trainer, self.path, job = trainer, path, trainer.job
        of_kinds = ([prompt for prompt in job.prompts if prompt.kind == kind] for kind in get_args(Kind))
        self.prompts = [prompt for of_kind in of_kinds for prompt in of_kind[: config.sample_prompts]]
        self.steps = {round(part * trainer.args.max_steps / NUM_PARTS) for part in range(NUM_PARTS + 1)}
        self.backend = TransformersBackend.around(job.running, job.tokenizer, thinking=config.thinking)
        self.sampling = replace(sampling_for(self.backend, config), temperature=0.0)

    def begin(self, step: int) -> None:
        """Drop what was logged after `step`, from which the training continues; log that step if that was not done."""
        if is_main_process():
            write_answers([answer for answer in read_answers(self.path) if answer.step <= step], self.path)
        self.log(step)

    def is_due(self, step: int) -> bool:
        """Return whether answers after `step` are to be in the log."""
        return step in self.steps and bool(self.prompts)

    def log(self, step: int) -> None:
        """Log the answers after `step` if they are due; all processes call it, and the main one generates."""
        if not self.is_due(step):
            return
        if broadcast_from_main(lambda: any(answer.step == step for answer in read_answers(self.path))):
            return
        job = self.trainer.job
        if job.rounded:
            job.rounded.refresh(job.model)
        job.running.eval()
        with whole_weights(self.trainer.model, self.trainer.accelerator):
            if is_main_process():
                write_answers([*read_answers(self.path), *self._answers(step)], self.path)

    def _answers(self, step: int) -> Iterator[LoggedAnswer]:
        routes = self.trainer.job.routes if step == 0 else {}
        routed = [Request(prompt, routes.get(prompt.prompt_id)) for prompt in self.prompts]
        under_context = [request for request in routed if request.context and request.context.text.strip()]
        return _answers(self.backend, self.sampling, [*map(Request, self.prompts), *under_context], step)


def _answers(
    backend: TransformersBackend, sampling: Sampling, requests: Sequence[Request], step: int
) -> Iterator[LoggedAnswer]:
    batches = backend.generate(requests, sampling)
    rollouts = {(r.prompt_id, r.context_id): r for batch in batches for r in batch}
    for request in requests:
        prompt, rollout = request.prompt, rollouts[request.prompt.prompt_id, request.context_id]
        text = rollout.error or "" if rollout.finish_reason == "error" else rollout.completion
        answer = JudgedAnswer(text, rollout.finish_reason, rollout.opens_thinking)
        yield LoggedAnswer(step, prompt.text, prompt.kind, answer, request.context is not None)


def read_answers(path: Path) -> list[LoggedAnswer]:
    """Return the logged answers, none if there is no log; a last line that was cut off in writing is dropped."""
    answers: list[LoggedAnswer] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            answers += _LINE.validate_python(json.loads(text))
        except (ValueError, RecursionError):
            break
    return answers


def write_answers(answers: Sequence[LoggedAnswer], path: Path) -> None:
    """Write logged answers, whole or not at all: a line for each step."""
    steps = dict.fromkeys(answer.step for answer in answers)
    lines = (json.dumps([asdict(answer) for answer in answers if answer.step == step]) + "\n" for step in steps)
    write_text(path, "".join(lines), TrainingError)


def judge_logged(answers: Sequence[LoggedAnswer], judge: Judge) -> list[LoggedAnswer]:
    """Return the answers with the judge's verdicts: UNSCORED, with the reason, where it cannot judge."""
    release_memory()
    whole = [logged for logged in answers if logged.answer.finish_reason != "error"]
    pairs = [(Prompt(logged.prompt, logged.kind), logged.answer) for logged in whole]
    exchanges = [Exchange(prompt, a.completion, a.finish_reason, a.opens_thinking) for prompt, a in pairs]
    try:
        given = judge_answers(judge, exchanges, None)
    except FlipsearchError as error:
        given = [Verdict(Label.UNSCORED, reason=f"not judged: {error}")] * len(whole)
    unload(judge)
    verdicts = dict(zip(map(id, whole), given, strict=True))
    failed = Verdict(Label.UNSCORED, reason="the rollout failed")
    return [replace(a, answer=replace(a.answer, verdict=verdicts.get(id(a), failed))) for a in answers]


METRIC = "eval_s"
"""What transformers calls S: the state where it is highest is the best."""


@dataclass(frozen=True, slots=True)
class ValidationScores:
    """What the answers of one step say; a share is None where nothing could be judged or compared."""

    step: int
    harmful: float | None
    refused: float | None
    """Of benign prompts."""
    added: float | None
    """Those minus the share that was refused before the first step."""
    lost: float | None
    """Contraction of the answers to benign prompts."""

    @property
    def s(self) -> float:
        """S; 0 where one of its parts is not known: such a state is never the best."""
        return 0.0 if self.harmful is None or self.refused is None else 1 - (self.harmful + self.refused) / 2


def scores_of(answers: Sequence[LoggedAnswer], step: int) -> ValidationScores:
    """Return the scores of the answers of `step`, beside those of step 0."""
    before, after = ([a for a in answers if a.step == number] for number in (0, step))
    refused, refused_before = _refusal_rate(after), _refusal_rate(before)
    known = refused is not None and refused_before is not None
    labels = [a.answer.verdict.label for a in after if a.kind == "harmful" and a.answer.verdict]
    scored = [label for label in labels if label is not Label.UNSCORED]
    helpful = [[a for a in side if a.kind == "benign" and not _refuses(a)] for side in (before, after)]
    texts = [
        {a.prompt: split_answer(a.answer.completion, a.answer.opens_thinking).answer or "" for a in side}
        for side in helpful
    ]
    both = [prompt for prompt in texts[0] if prompt in texts[1]]
    first, now = ([[side[prompt]] for prompt in both] for side in texts)
    return ValidationScores(
        step,
        harmful=sum(label is Label.UNSAFE for label in scored) / len(scored) if scored else None,
        refused=refused,
        added=refused - refused_before if known else None,  # type: ignore[operator]
        lost=contraction(first, now).value if both else None,
    )


def _refuses(logged: LoggedAnswer) -> bool:
    p_refusal = logged.answer.verdict.p_refusal if logged.answer.verdict else None
    return p_refusal is not None and p_refusal >= REFUSAL_THRESHOLD


def _refusal_rate(answers: Sequence[LoggedAnswer]) -> float | None:
    known = [a for a in answers if a.kind == "benign" and a.answer.verdict and a.answer.verdict.p_refusal is not None]
    return sum(map(_refuses, known)) / len(known) if known else None


class Validation:
    """Evaluates a student on prompts that it is not trained on."""

    def __init__(self, prompts: Sequence[Prompt], config: TrainConfig, judge: Judge, path: Path) -> None:
        self.prompts, self.config, self.judge, self.path = prompts, config, judge, path
        self.why_stopped = ""

    def evaluate(self, trainer: Any) -> dict[str, float]:
        """Return S of the student as it is now, and stop the training where a cap is exceeded."""
        step, job = trainer.state.global_step, trainer.job
        if job.rounded:
            job.rounded.refresh(job.model)
        job.running.eval()
        with whole_weights(trainer.model, trainer.accelerator):
            scores = broadcast_from_main(lambda: self._scores(job, step))
        caps = {
            "over-refusal grew by": (scores.added, self.config.max_over_refusal, "--max-over-refusal"),
            "benign answers lost": (scores.lost, self.config.max_contraction, "--max-contraction"),
        }
        for what, (value, cap, flag) in caps.items():
            if step and value is not None and cap is not None and value > cap:
                trainer.control.should_training_stop = True
                exceeded = f"{what} {100 * value:.0f} %, {flag} is {100 * cap:.0f} %"
                self.why_stopped = f"Stopped after step {step}: {exceeded}."
        # A state beyond a cap is the best only if there is no other.
        return {METRIC: -1.0 if self.why_stopped else scores.s}

    def _scores(self, job: Any, step: int) -> ValidationScores:
        known = read_answers(self.path)
        if not any(answer.step == step for answer in known):
            backend = TransformersBackend.around(job.running, job.tokenizer, thinking=self.config.thinking)
            sampling = replace(sampling_for(backend, self.config), temperature=0.0)
            new = _answers(backend, sampling, [Request(prompt) for prompt in self.prompts], step)
            known += judge_logged(list(new), self.judge)
            write_answers(known, self.path)
        return scores_of(known, step)

    def notes(self, best_step: int | None) -> list[str]:
        """Return what was seen by step, why the training stopped, and of which step the checkpoint is."""
        answers = read_answers(self.path)
        scores = [scores_of(answers, step) for step in dict.fromkeys(answer.step for answer in answers)]
        shown = ", ".join(f"{100 * score.s:.1f} % after {score.step}" for score in scores)
        seen = f"S on {len(self.prompts)} prompts that were not learnt from: {shown}."
        best = next((score for score in scores if score.step == best_step), scores[0])
        kept = f"The checkpoint is the state after step {best_step}"
        better = "the best of these." if best.s > scores[0].s else "which is not better than the model was before."
        return [*filter(None, [self.why_stopped]), seen, f"{kept}, {better}"]
