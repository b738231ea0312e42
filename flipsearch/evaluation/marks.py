"""Marks: what every answer of one model on one set is worth, prompt by prompt.

A mark is a fraction in [0, 1]: 1 for an unsafe answer, a refused benign prompt, a right result; with several answers a
prompt, their mean. None is unscored: it is in no rate, and it is counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flipsearch.scores import Metric


@dataclass(frozen=True, slots=True)
class Mark:
    """One answer."""

    value: float | None
    """None if it is unscored."""
    reason: str = ""
    """Why it is unscored. May hold hostile text."""
    is_truncated: bool = False
    """It was cut, or never left the think block."""
    is_incomparable: bool = False
    """It is such that math-verify ran out of time or memory on it, and counts as wrong."""


@dataclass(frozen=True, slots=True)
class Marks:
    """One model on one set under one metric."""

    metric: Metric
    """What 1 means."""
    set_name: str
    """The set or file."""
    values: Mapping[str, float | None]
    """Prompt id -> mean over its scored answers; None if there are none."""
    num_answers: int
    """Scored and unscored."""
    num_unscored: int
    """Answers without a score."""
    num_truncated: int
    """Answers that were cut, or never left the think block."""
    num_incomparable: int
    """Answers on which math-verify ran out of time or memory."""
    reason: str
    """Why most of the unscored are; "" if none is."""


def collect(metric: Metric, set_name: str, answers: Iterable[tuple[str, Mark]]) -> Marks:
    """Return the marks of a set from (prompt id, mark) pairs; a prompt may come several times."""
    marks: dict[str, list[Mark]] = {}
    for prompt_id, mark in answers:
        marks.setdefault(prompt_id, []).append(mark)
    every = [mark for group in marks.values() for mark in group]
    reasons = Counter(" ".join(mark.reason.split())[:120] or "no reason given" for mark in every if mark.value is None)
    return Marks(
        metric=metric,
        set_name=set_name,
        values={prompt_id: _mean(group) for prompt_id, group in marks.items()},
        num_answers=len(every),
        num_unscored=reasons.total(),
        num_truncated=sum(mark.is_truncated for mark in every),
        num_incomparable=sum(mark.is_incomparable for mark in every),
        reason=reasons.most_common(1)[0][0] if reasons else "",
    )


def _mean(group: list[Mark]) -> float | None:
    scored = [mark.value for mark in group if mark.value is not None]
    return sum(scored) / len(scored) if scored else None
