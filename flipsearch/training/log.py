"""What a training says while it runs: a line a step in log.jsonl, and the progress bar.

A line is flushed when its step is done. A resumed training drops the lines after the state that it goes on from.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from flipsearch.core.errors import TrainingError
from flipsearch.core.files import write_text
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.trainings import LogLine
from flipsearch.training.opsa import OpsaTrainer
from flipsearch.training.processes import all_gather, is_main_process
from flipsearch.training.stats import StepStats

LOG_FILE = "log.jsonl"
STEP_KEYS = ("loss", "grad_norm", "learning_rate")


class StepLog(TrainerCallback):
    """Writes the lines of a trainer and shows how far it is."""

    def __init__(self, trainer: OpsaTrainer, path: Path, progress: Progress | None) -> None:
        self.trainer, self.path, self.progress = trainer, path, progress
        self.num_rollouts = self.num_tokens = 0
        self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps that will be done again."""
        self.last = time.monotonic()
        if not is_main_process():
            return
        kept = [line for line in read_log(self.path) if line["step"] <= state.global_step]
        write_text(self.path, "".join(_text(line) for line in kept), TrainingError)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the line of a step, of all processes together."""
        if "loss" not in logs:  # the summary at the end
            return
        stats, self.trainer.stats = StepStats.of_parts(all_gather(self.trainer.stats)), StepStats()
        if not is_main_process():
            return
        values = {key: float(logs[key]) for key in STEP_KEYS if key in logs}
        before, self.last = self.last, time.monotonic()
        values["step_s"] = round(self.last - before, 6)
        line = {"step": state.global_step, "epoch": state.epoch, **values, **stats.summary()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(line))
        self._show(state, line)

    def _show(self, state: Any, line: LogLine) -> None:
        self.num_rollouts += int(line["num_rollouts"])
        self.num_tokens += int(line["num_tokens"])
        if self.progress is not None:
            self.progress(
                Step(Phase.TRAINING, activity=Activity.TRAINING),
                state.global_step,
                state.max_steps,
                self.num_rollouts,
                self.num_tokens,
            )


def read_log(path: Path) -> Sequence[LogLine]:
    """Return the lines of a log, none if there is no log; a last line that was cut off in writing is dropped."""
    lines: list[LogLine] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _text(line: LogLine) -> str:
    # JSON knows no NaN: what is not finite is null.
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in line.items()}
    return json.dumps(finite) + "\n"
