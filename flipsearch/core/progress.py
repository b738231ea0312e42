"""What a command reports while it works: its progress to the user, and its events to events.jsonl.

Progress is the phase, the activity there and how many items are done. Events are one JSON object per line:

    {"time": "2026-11-24T21:00:00.123+00:00", "event": "pruned", "context_id": "…", "rung": 1, "evidence": 31.4}

Events are for people and their scripts: nothing here reads them, and no result depends on them. A run that is replayed
from the ledger emits its events again, under a new "launch".
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from flipsearch.core.errors import StudyError
from flipsearch.core.measurements import Rate


class Phase(StrEnum):
    """A part of a command that generates, judges or trains; the value is the label shown to users."""

    STARTING = "starting"
    LOADING = "loading"
    BASELINE = "baseline"
    CONFIRM_BASELINE = "confirm baseline"
    PLACEBO = "placebo"
    SCREEN = "screen"
    RACE = "race"
    REWRITE = "rewrite"
    FINALISTS = "finalists"
    DEPTH = "depth"
    BENIGN_CONTEXTS = "benign contexts"
    SECOND_JUDGE = "second judge"
    SCORE = "contexts"
    ROUTING = "routing"
    ANSWERS = "answers"
    TRAINING = "training"
    EVALUATION = "evaluation"
    ANATOMY = "divergence by token"
    JUDGE_CHECK = "judge check"


class Activity(StrEnum):
    """What is done in a phase; the value is the label shown to users."""

    GENERATING = "generating"
    JUDGING = "judging"
    SCORING = "scoring prefixes"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Step:
    """A phase, which part of it (e.g. the rung), and the activity there."""

    phase: Phase
    detail: str = ""
    activity: Activity = Activity.GENERATING
    status: str = ""
    """What the model's backend waits for; "" for nothing but answers."""
    best: Rate | None = field(default=None, compare=False)
    """The highest flip rate so far of a context within the cap, among those that saw most prompts."""
    study_tokens: int = field(default=0, compare=False)
    """Completion tokens that the study rests on so far, those of earlier launches included: what a budget counts."""

    @property
    def label(self) -> str:
        """The step as shown to users, e.g. "race cohort 1/3, rung 2/3: judging"."""
        name = f"{self.phase} {self.detail}".strip()
        label = name if self.activity in (Activity.GENERATING, Activity.TRAINING) else f"{name}: {self.activity}"
        return f"{label} ({self.status})" if self.status else label


class Progress(Protocol):
    """Is called after every batch of rollouts, every judged batch and every training step."""

    def __call__(self, step: Step, done: int, total: int, num_rollouts: int, num_tokens: int) -> None:
        """Report that `done` of `total` items are done, and the rollouts and tokens that this command has generated."""


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def announce(work: str) -> None:
    """Say what is done now where nothing is counted, such as the loading of a model, to the display if there is one."""
    if listener := _listener.get():
        listener(work)


@contextmanager
def announced_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Let a display know of what is announced in a block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Emit(Protocol):
    """Records an event with its facts, which JSON can hold."""

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Record the event."""


def silent(event: str, /, **facts: Any) -> None:
    """Discard the event."""


class Events:
    """Appends events to a file, each in one write; StudyError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_checked = False

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Append one line with the time in UTC, behind a line that a kill may have left incomplete."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | facts, default=str) + "\n"
        try:
            with self.path.open("ab+") as file:
                if not self._is_checked and file.tell():
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(line.encode("ascii"))
        except OSError as error:
            why = f"cannot write '{self.path}': {error.strerror}"
            raise StudyError(f"{why}; free the disk or move the file away.") from error
        self._is_checked = True
