"""What answers to benign prompts lose under a context: length, variety, and nothing by chance."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.config import SearchConfig
from flipsearch.core.records import Request, Rollout, Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import contraction
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from tests.world import GREEDY, Model, RefusalJudge, flat, library, prompt_set

ANSWERS = [" ".join(f"{letter}{other}" for other in "klmnopqrst") for letter in "abcdefgh"]
"""Ten words each, and none in common."""
TEXTS = st.lists(st.lists(st.text("ab c", max_size=30), min_size=2, max_size=2), min_size=1, max_size=6)


def lost(before: Sequence[str], after: Sequence[str]) -> float:
    estimate = contraction([[text] for text in before], [[text] for text in after])
    assert estimate.value is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.value


def test_shorter_repeating_and_uniform_answers_are_contracted() -> None:
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in ANSWERS]
    alike = ["Thank you for this wise question about the plants"] * 8
    assert lost(ANSWERS, ANSWERS) == 0
    assert lost(ANSWERS, ["Yes."] * 8) == 1
    assert 0.3 < lost(ANSWERS, halves) < 0.8
    assert lost(ANSWERS, [f"{letter} " * 10 for letter in "abcdefgh"]) > 0.8
    assert lost(ANSWERS, alike) > 0.8


def test_languages_without_blanks_are_measured_by_their_characters() -> None:
    answer = "春天的时候植物需要很多阳光和水,这样它们才能长得又高又壮,要记得每天早上浇水。"
    assert lost([answer * 2], [answer[:20]]) > 0.3


@given(TEXTS)
def test_it_is_signed_and_has_no_side(texts: list[list[str]]) -> None:
    before, after = [first for first, _ in texts], [second for _, second in texts]
    assert -1 <= lost(before, after) <= 1
    assert lost(before, after) == pytest.approx(-lost(after, before))


class Terse(Model):
    """Answers each benign prompt in words of its own, but under contexts with the word "firm" in one word."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        requested = {(r.prompt.prompt_id, r.context_id): r for r in requests}
        for rollout in flat(super().generate(requests, sampling)):
            request = requested[rollout.prompt_id, rollout.context_id]
            terse = request.context is not None and "firm" in request.context.text
            text = "Here." if terse else f"Here are the steps for {request.prompt.text} ."
            yield [replace(rollout, completion=text) if request.prompt.kind == "benign" else rollout]


@pytest.mark.parametrize(("cap", "wins"), [(0.3, False), (1.0, True)])
def test_a_context_that_empties_benign_answers_does_not_win(cap: float, wins: bool) -> None:
    config = SearchConfig(
        num_contexts=12, cohort_size=6, first_rung=8, num_finalists=3, breed=0, max_contraction=cap,
        templates=("plain", "wordy"),
    )  # fmt: skip
    with Ledger("sqlite://") as ledger:
        setup = prepare_search(config, library(), prompt_set())
        study = run_study(setup, Runner(Terse(), RefusalJudge(), ledger, GREEDY))
    contracted = [trial for trial in study.trials if "firm" in trial.context.text]
    assert all(trial.search.contraction and trial.search.contraction.value == 1 for trial in contracted)
    assert all(study.is_contracted(trial) is not wins for trial in contracted)
    assert wins or study.winner is None or "firm" not in study.winner.context.text
    assert wins or study.winner or any("contraction (at most 30%)" in note for note in study.notes)
