"""What a training logs while it runs: statistics per step and label in log.jsonl, and the progress bar.

A line is for all processes together. A resumed training drops the lines after its last state. Statistics by position
count completion tokens: "early" are the first EARLY, where the paper's Figure 2 peaks, "late" those from LATE on.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from flipsearch.core.errors import TrainingError
from flipsearch.core.files import write_text
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.records import Context
from flipsearch.core.trainings import LogLine
from flipsearch.training.answer_log import AnswerLog
from flipsearch.training.checkpoint import save_errors_as_one_line
from flipsearch.training.divergence import PerToken
from flipsearch.training.processes import all_gather, is_main_process
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

    def __init__(self, trainer: Any, path: Path, progress: Progress | None, answers: AnswerLog) -> None:
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
        except ValueError:
            break
        if not isinstance(line, dict) or not all(isinstance(line.get(key), int | float) for key in NEEDED_KEYS):
            break
        lines.append(line)
    return lines
