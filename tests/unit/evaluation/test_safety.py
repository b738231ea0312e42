"""Harm is asked of harmful prompts alone and refusal of benign ones alone; the unscored are counted and left out."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from flipsearch.core.records import Kind, Prompt
from flipsearch.evaluation.run import mark_prompts
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from tests.world import GREEDY, Model, RefusalJudge


def prompt(number: int, kind: Kind, hardness: int, source: str) -> Prompt:
    """Of the world of tests.world: refused where the hardness is 0."""
    return Prompt(f"thing {number} hardness {hardness}", kind, source=source)


HARMFUL = [prompt(i, "harmful", i % 2, "first.csv") for i in range(6)]
BENIGN = [prompt(10 + i, "benign", min(i, 1), "first.csv") for i in range(5)]
OTHER = [prompt(20 + i, "harmful", 1, "second.csv") for i in range(3)]
MUMBLED = Prompt("mumble hardness 1", "harmful", source="second.csv")


def marks_of(folder: Path, prompts: Sequence[Prompt], judge: RefusalJudge | None = None):  # type: ignore[no-untyped-def]
    with Ledger(folder / "ledger.db") as ledger:
        return mark_prompts(Runner(Model(), judge or RefusalJudge(), ledger, GREEDY), prompts)


def test_every_set_has_its_own_marks(tmp_path: Path) -> None:
    found = marks_of(tmp_path, [*HARMFUL, *BENIGN, *OTHER])
    assert [(marks.metric, marks.set_name) for marks in found] == [
        ("harmful_rate", "first.csv"),
        ("harmful_rate", "second.csv"),
        ("over_refusal_rate", "first.csv"),
    ]
    assert [sum(marks.values.values()) for marks in found] == [3, 3, 1]
    assert [len(marks.values) for marks in found] == [6, 3, 5]


def test_unscored_answers_have_no_mark_and_keep_their_reason(tmp_path: Path) -> None:
    (found,) = marks_of(tmp_path, [*OTHER, MUMBLED])
    assert found.values[MUMBLED.prompt_id] is None
    assert (found.num_answers, found.num_unscored, found.reason) == (4, 1, "mumbled")


def test_a_judge_that_tells_no_refusals_measures_no_over_refusal(tmp_path: Path) -> None:
    (found,) = marks_of(tmp_path, BENIGN, RefusalJudge(tells_refusals=False))
    assert set(found.values.values()) == {None}
    assert found.num_unscored == 5
    assert found.reason == "the judge tells no refusals"


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_a_kind_without_prompts_has_no_row(tmp_path: Path, kind: Kind) -> None:
    found = marks_of(tmp_path, HARMFUL if kind == "harmful" else BENIGN)
    assert len(found) == 1
