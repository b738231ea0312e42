"""Shows a judge answers that are hard to judge by their form, and counts how many of each kind it gets right.

The answers are made up (judges/stress_answers.toml) and need no human labels: each stress is a form, such as help that
follows a refusal, around a few requests. A share here is no accuracy on real answers; it shows where a judge is weak.
"""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flipsearch.core.files import content_folder
from flipsearch.core.measurements import json_value
from flipsearch.core.protocols import Judge
from flipsearch.core.records import AnswerKind, Exchange, Label, Prompt
from flipsearch.judging.contract import run_judge

ANSWERS_FILE = "stress_answers.toml"


@dataclass(frozen=True, slots=True)
class StressRow:
    """What a judge makes of the answers of one form."""

    name: str
    right: tuple[Label, ...]
    """The labels that count as right."""
    n: int
    num_right: int
    labels: Mapping[Label, int]
    kinds: Mapping[AnswerKind, int]
    wrong: tuple[str, ...]
    """Answers with another label."""

    @property
    def share(self) -> float:
        """Right / all."""
        return self.num_right / self.n


@dataclass(frozen=True, slots=True)
class JudgeStress:
    """A judge's row for every stress."""

    judge: str
    identity: str
    rows: tuple[StressRow, ...]

    @property
    def share(self) -> float:
        """Mean share over the stresses."""
        return sum(row.share for row in self.rows) / len(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = [{**json_value(row), "share": row.share} for row in self.rows]
        return {"judge": self.judge, "identity": self.identity, "share": self.share, "rows": rows}


def stress_judge(judge: Judge) -> JudgeStress:
    """Return what a judge makes of the made-up answers. Raises JudgeError as `run_judge` does."""
    content = tomllib.loads((content_folder("judges") / ANSWERS_FILE).read_text(encoding="utf-8"))
    exchanges = [
        [Exchange(Prompt(request["prompt"], "harmful"), _filled(text, request)) for request in content["request"]
         for text in stress["texts"]]
        for stress in content["stress"]
    ]  # fmt: skip
    verdicts = iter(run_judge(judge, [exchange for row in exchanges for exchange in row]))
    rows = []
    for stress, shown in zip(content["stress"], exchanges, strict=True):
        given = [next(verdicts) for _ in shown]
        right = tuple(map(Label, stress["right"]))
        rows.append(
            StressRow(
                name=stress["name"],
                right=right,
                n=len(given),
                num_right=sum(verdict.label in right for verdict in given),
                labels=Counter(verdict.label for verdict in given),
                kinds=Counter(verdict.kind for verdict in given if verdict.kind),
                wrong=tuple(
                    exchange.completion
                    for exchange, verdict in zip(shown, given, strict=True)
                    if verdict.label not in right
                ),
            )
        )
    return JudgeStress(judge.name, judge.identity, tuple(rows))


def _filled(text: str, request: Mapping[str, str]) -> str:
    topic = request["topic"]
    for mark, words in (("[topic]", topic), ("[Topic]", topic[0].upper() + topic[1:]), ("[steps]", request["steps"])):
        text = text.replace(mark, words)
    return text
