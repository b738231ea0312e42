"""What the page's scripts read: all rows, what became of each prompt, and each answer with what every judge said."""

from dataclasses import replace
from typing import Any

import pytest

from flipsearch.core.records import Label, Verdict
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting import page_data
from flipsearch.reporting.format import notes_by_kind
from flipsearch.reporting.page_data import study_times
from flipsearch.reporting.pages import leaderboard_page
from flipsearch.reporting.study_file import FINISHED
from flipsearch.searching import prepare_search, run_study
from tests.pages import data_of, words_of
from tests.unit.reporting.test_columns import CONFIG
from tests.world import COMPLIANCE, GREEDY, REFUSAL, VOCABULARY, Model, RefusalJudge, library, prompt_set


@pytest.fixture(scope="module")
def ledger() -> Any:
    with Ledger("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def study(ledger: Ledger) -> Study:
    setup = prepare_search(CONFIG.model_copy(update={"max_tokens": 8}), library(), prompt_set())
    return run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY))


def test_every_trial_is_a_row_with_its_text_and_lineage(study: Study) -> None:
    data = data_of(leaderboard_page(study))
    assert [row["id"] for row in data["rows"]] == [trial.context.context_id for trial in study.trials]
    assert [row["text"] for row in data["rows"]] == [trial.context.text for trial in study.trials]
    assert len({row["name"] for row in data["rows"]}) == len(study.trials)


def test_the_matrix_counts_the_flips_of_each_trial(study: Study) -> None:
    matrix = data_of(leaderboard_page(study))["matrix"]
    assert all(study.prompts[place].kind == "harmful" for place in matrix["prompts"])
    for trial, letters in zip(study.trials, matrix["rows"], strict=True):
        assert letters.count("f") == trial.search.flip_rate.count
        assert letters.count("f") + letters.count("u") == trial.search.flip_rate.n


def test_answers_stand_beside_those_without_a_context(study: Study, ledger: Ledger) -> None:
    answers = data_of(leaderboard_page(study, ledger), "answer-data")
    shown = [study.trials[row] for row, _ in answers["contexts"]]
    assert shown == [trial for trial in study.trials if trial.confirm]
    for trial, (_, pairs) in zip(shown, answers["contexts"], strict=True):
        flips = [pair for pair in pairs if pair[1:3] == ["unsafe", "safe"]]
        assert len(flips) == trial.search.flip_rate.count + trial.final.flip_rate.count
        for pair in flips:
            before, after = (answers["answers"][place] for place in pair[-2:])
            assert (before[1], after[1]) == (COMPLIANCE, REFUSAL)
            assert [verdict[1] for verdict in before[4] + after[4]] == ["unsafe", "safe"]


class Beginner(Model):
    """Begins its answers as an attack says."""

    def completion_ids(self, answer: str) -> tuple[int, ...]:
        return tuple(map(VOCABULARY.index, answer.split()))

    def beginning(self, answer: str, num_tokens: int) -> str:
        return " ".join(answer.split()[:num_tokens])


def test_an_answer_that_an_attack_began_stands_beside_those_under_contexts() -> None:
    prompts = [replace(prompt, request=prompt.text, prefill="Take") for prompt in prompt_set()]
    setup = prepare_search(CONFIG.model_copy(update={"max_tokens": 8}), library(), prompts)
    with Ledger("sqlite://") as ledger:
        attacked = run_study(setup, Runner(Beginner(), RefusalJudge(), ledger, GREEDY))
        answers = data_of(leaderboard_page(attacked, ledger), "answer-data")
    before = [
        answers["answers"][pair[-2]][1] for _, pairs in answers["contexts"] for pair in pairs if pair[-2] is not None
    ]
    assert len(before) == sum(len(pairs) for _, pairs in answers["contexts"]) > 0
    assert COMPLIANCE in before


def test_a_flip_and_a_failure_are_in_the_page_itself(study: Study, ledger: Ledger) -> None:
    page = leaderboard_page(study, ledger)
    examples = page[page.index("A flip: ") : page.index("All contexts")]
    assert f'<pre tabindex="0">{REFUSAL}</pre>' in examples
    assert "A failure: " in examples
    harmful = f'<summary>Show the answer: it may be harmful</summary><pre tabindex="0">{COMPLIANCE}</pre></details>'
    assert examples.count(harmful) == examples.count(COMPLIANCE) == 3


def test_every_judge_is_heard(study: Study, ledger: Ledger) -> None:
    assert study.winner is not None
    of = next(flip for flip in study.winner.final.flips if flip.flipped).rollout_ids[0]
    ledger.save_verdicts("strict", [(of, Verdict(Label.UNSAFE, 0.9, reason="I doubt it"))])
    answers = data_of(leaderboard_page(study, ledger), "answer-data")
    assert answers["judges"] == ["world judge", "strict"]
    [differing] = [answer for answer in answers["answers"] if len(answer[4]) == 2]
    assert differing[4][1] == [1, "unsafe", 0.9, None, None, "I doubt it"]


def test_long_answers_are_cut_so_that_the_page_can_be_opened(
    study: Study, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data, "LONGEST_TEXT", len(REFUSAL) - 1)
    answers = data_of(leaderboard_page(study, ledger), "answer-data")
    assert max(len(answer[1]) for answer in answers["answers"]) == answers["cut"] == len(REFUSAL) - 1
    assert any(is_cut for _, _, _, is_cut, _ in answers["answers"])


def test_without_a_ledger_the_page_says_where_the_answers_are(study: Study) -> None:
    page = leaderboard_page(study)
    assert 'id="answer-data"' not in page
    assert "flipsearch ledger export" in words_of(page)


def test_the_page_says_when_the_study_was_finished(study: Study, ledger: Ledger) -> None:
    assert study_times(study, ledger) is None
    ledger.note(FINISHED.format(study.num_rollouts), study.name)
    assert study_times(study, ledger) is not None
    assert " · finished " in leaderboard_page(study, ledger)


def test_notes_are_warnings_facts_and_methods(study: Study) -> None:
    given = (
        "Few unsafe prompts: 3.",
        "247 contexts were screened.",
        "On the search prompts 4 cannot be distinguished from it.",
    )
    notes = notes_by_kind(replace(study, notes=given))
    assert [notes[kind] for kind in ("warning", "method", "fact")] == [[note] for note in given]
