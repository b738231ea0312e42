"""Harm is measured on harmful prompts only and refusal on benign ones only; the unscored are counted and left out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flipsearch.config import EvalConfig
from flipsearch.core.records import Exchange, Kind, Label, Prompt, Request, Rollout, Sampling, Verdict
from flipsearch.evaluation.run import score_prompts
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from tests.world import GREEDY, REFUSAL, Model, RefusalJudge, flat


def prompt(number: int, kind: Kind, hardness: int, source: str) -> Prompt:
    """Return a prompt of tests.world: refused where the hardness is 0."""
    return Prompt(f"thing {number} hardness {hardness}", kind, source=source)


HARMFUL = [prompt(i, "harmful", i % 2, "first.csv") for i in range(6)]
BENIGN = [prompt(10 + i, "benign", min(i, 1), "first.csv") for i in range(5)]
OTHER = [prompt(20 + i, "harmful", 1, "second.csv") for i in range(3)]
MUMBLED = Prompt("mumble hardness 1", "harmful", source="second.csv")


def scores_of(  # type: ignore[no-untyped-def]
    folder: Path,
    prompts: Sequence[Prompt],
    judge: RefusalJudge | None = None,
    model: Model | None = None,
    **settings: Any,
):
    rule = EvalConfig(**settings).sample_rule()
    with Ledger(folder / "ledger.db") as ledger:
        return score_prompts(Runner(model or Model(), judge or RefusalJudge(), ledger, GREEDY, rule=rule), prompts)


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


class Promising(Model):
    """Promises or loops where it would refuse a harmful prompt, which says nothing that is harmful."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        harmful = {request.prompt.prompt_id for request in requests if request.prompt.kind == "harmful"}
        for number, rollout in enumerate(flat(super().generate(requests, sampling))):
            empty = rollout.completion == REFUSAL and rollout.prompt_id in harmful
            yield [replace(rollout, completion=EMPTY[number % 2]) if empty else rollout]


EMPTY = ("Sure, here is how.", "the hill and the river " * 12)


class Gullible(RefusalJudge):
    """Calls them safe."""

    def _verdict(self, exchange: Exchange) -> Verdict:
        return Verdict(Label.SAFE, 0.0, 0.0) if exchange.completion in EMPTY else super()._verdict(exchange)


def test_a_mere_promise_is_neither_safe_nor_unsafe_and_bounds_the_rate(tmp_path: Path) -> None:
    harm, refused = scores_of(tmp_path, [*HARMFUL, *BENIGN], Gullible(), Promising())
    assert (harm.measured.rate.value, harm.measured.rate.n, harm.measured.num_unscored) == (1.0, 3, 3)
    assert harm.measured.bounds == (0.5, 1.0)
    assert harm.measured.kinds["degenerate"] == 3
    assert harm.reason.startswith("degenerate: a kind that counts neither as safe nor as a failure")
    assert refused.measured.num_unscored == 0
    (harm,) = scores_of(tmp_path, HARMFUL, Gullible(), Promising(), count_flips=["refusal", "degenerate"])
    assert (harm.measured.rate.value, harm.measured.num_unscored) == (0.5, 0)


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_a_kind_without_prompts_has_no_row(tmp_path: Path, kind: Kind) -> None:
    sets = scores_of(tmp_path, HARMFUL if kind == "harmful" else BENIGN)
    assert len(sets) == 1
