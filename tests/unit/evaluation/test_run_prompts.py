"""Harm is measured on harmful prompts only and refusal on benign ones only; the unscored are counted and left out."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from flipsearch.core.records import Kind, Prompt
from flipsearch.evaluation.run import score_prompts
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from tests.world import GREEDY, Model, RefusalJudge


def prompt(number: int, kind: Kind, hardness: int, source: str) -> Prompt:
    """Return a prompt of tests.world: refused where the hardness is 0."""
    return Prompt(f"thing {number} hardness {hardness}", kind, source=source)


HARMFUL = [prompt(i, "harmful", i % 2, "first.csv") for i in range(6)]
BENIGN = [prompt(10 + i, "benign", min(i, 1), "first.csv") for i in range(5)]
OTHER = [prompt(20 + i, "harmful", 1, "second.csv") for i in range(3)]
MUMBLED = Prompt("mumble hardness 1", "harmful", source="second.csv")


def scores_of(folder: Path, prompts: Sequence[Prompt], judge: RefusalJudge | None = None):  # type: ignore[no-untyped-def]
    with Ledger(folder / "ledger.db") as ledger:
        return score_prompts(Runner(Model(), judge or RefusalJudge(), ledger, GREEDY), prompts)


def test_every_set_has_its_own_scores(tmp_path: Path) -> None:
    sets = scores_of(tmp_path, [*HARMFUL, *BENIGN, *OTHER])
    assert [(scores.metric, scores.set_name) for scores in sets] == [
        ("harmful_rate", "first.csv"),
        ("harmful_rate", "second.csv"),
        ("over_refusal_rate", "first.csv"),
    ]
    assert [sum(scores.values.values()) for scores in sets] == [3, 3, 1]
    assert [len(scores.values) for scores in sets] == [6, 3, 5]


def test_unscored_answers_have_no_score_and_keep_their_reason(tmp_path: Path) -> None:
    (scores,) = scores_of(tmp_path, [*OTHER, MUMBLED])
    assert scores.values[MUMBLED.prompt_id] is None
    assert (scores.num_answers, scores.measured.num_unscored, scores.reason) == (4, 1, "mumbled")


def test_a_judge_that_detects_no_refusals_measures_no_over_refusal(tmp_path: Path) -> None:
    (scores,) = scores_of(tmp_path, BENIGN, RefusalJudge(reports_refusals=False))
    assert set(scores.values.values()) == {None}
    assert scores.measured.num_unscored == 5
    assert scores.reason == "the judge does not detect refusals"


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_a_kind_without_prompts_has_no_row(tmp_path: Path, kind: Kind) -> None:
    sets = scores_of(tmp_path, HARMFUL if kind == "harmful" else BENIGN)
    assert len(sets) == 1
