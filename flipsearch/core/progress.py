"""How far a command has come: its phase, what it does there, and how many items are done."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """A part of a command that generates, judges or trains; the value is the label shown to users."""

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

    @property
    def label(self) -> str:
        """The step as shown to users, e.g. "race cohort 1/3, rung 2/3: judging"."""
        name = f"{self.phase} {self.detail}".strip()
        return name if self.activity in (Activity.GENERATING, Activity.TRAINING) else f"{name}: {self.activity}"


class Progress(Protocol):
    """Is called after every batch of rollouts, every judged batch and every training step."""

    def __call__(self, step: Step, done: int, total: int, num_rollouts: int, num_tokens: int) -> None:
        """Report that `done` of `total` items are done, and the rollouts and tokens that this command has generated."""
        ...
