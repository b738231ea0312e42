"""Which answers annotators are given: sampled with the probabilities written beside them, and written losslessly."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from flipsearch.core.errors import StudyError
from flipsearch.core.records import Exchange, Prompt, Sampling
from flipsearch.core.studies import Study
from flipsearch.judging.labels import AnswerPlace, AnswerToLabel, StudyLabel, merge_labels, read_labels, sample_answers
from flipsearch.ledger import Ledger
from flipsearch.reporting.files import write_labels
from tests.labelled import PROMPTS, MistakenJudge, best_of, mistaken_study, renamed, sample
from tests.world import prompt_set


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def study(ledger: Ledger) -> Study:
    return mistaken_study(ledger)


def ids(answers: list[AnswerToLabel]) -> list[str]:
    return list(dict.fromkeys(answer.place.prompt_id for answer in answers))


def probabilities(study: Study, ledger: Ledger, num: int, num_contexts: int = 1) -> dict[str, float]:
    """Return prompt id -> its probability, gathered from samples until each prompt was in one."""
    result: dict[str, float] = {}
    for number in count():
        answers = sample(renamed(study, number), ledger, num, num_contexts)
        result |= {answer.place.prompt_id: answer.place.probability for answer in answers}
        if len(result) == 60:
            break
    return result


@pytest.mark.parametrize("num", [12, 30, 55])
def test_a_prompt_is_sampled_as_often_as_its_probability_says(study: Study, ledger: Ledger, num: int) -> None:
    samples = [sample(renamed(study, number), ledger, num) for number in range(200)]
    probability = {answer.place.prompt_id: answer.place.probability for answers in samples for answer in answers}
    seen = Counter(id for answers in samples for id in ids(answers))
    assert len(probability) == 60
    assert sum(probability.values()) == pytest.approx(num)
    for id, expected in probability.items():
        assert seen[id] / 200 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 200) ** 0.5 + 1e-9)


def test_doubtful_answers_are_sampled_more_often(study: Study, ledger: Ledger) -> None:
    probability = probabilities(study, ledger, 12)
    judge, text = MistakenJudge(), {prompt.prompt_id: prompt for prompt in PROMPTS}
    doubt = {}
    for id in probability:
        [base], flips = judge.judge([Exchange(text[id], "Take the steps here .")]), best_of(study).final
        assert flips is not None
        assert base.p_unsafe is not None
        doubt[id] = min(base.p_unsafe, 1 - base.p_unsafe)
    surest, least_sure = (
        sorted(probability, key=doubt.__getitem__)[:10],
        sorted(probability, key=doubt.__getitem__)[-10:],
    )
    assert max(probability[id] for id in surest) < min(probability[id] for id in least_sure)


def test_more_than_there_are_takes_all_of_them(study: Study, ledger: Ledger) -> None:
    answers = sample(study, ledger, 1000)
    assert len(ids(answers)) == 60
    assert {answer.place.probability for answer in answers} == {1.0}


def test_the_same_call_samples_the_same_and_a_larger_one_more(study: Study, ledger: Ledger) -> None:
    before: list[str] = []
    for num in (5, 10, 20, 40, 60):
        answers = sample(study, ledger, num)
        assert answers == sample(study, ledger, num)
        assert set(before) <= set(ids(answers))
        before = ids(answers)


def test_annotators_who_stop_early_have_labelled_a_smaller_sample(study: Study, ledger: Ledger) -> None:
    """While no probability is 1 a smaller sample is the beginning of a larger one."""
    large = ids(sample(study, ledger, 20))
    small = ids(sample(study, ledger, 10))
    assert large[: len(small)] == small


def test_each_prompt_has_its_answer_without_context_and_those_under_the_best(study: Study, ledger: Ledger) -> None:
    answers = sample(study, ledger, 10, num_contexts=2)
    finalists = [trial.context.context_id for trial in study.trials[:2]]
    by_prompt: dict[str, list[str]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.place.prompt_id, []).append(answer.place.context_id)
    assert {tuple(result) for result in by_prompt.values()} == {("", *finalists)}
    confirm = {prompt.prompt_id for prompt in PROMPTS if prompt.split == "confirm" and prompt.kind == "harmful"}
    assert set(by_prompt) <= confirm


def test_earlier_labels_are_filled_in(study: Study, ledger: Ledger) -> None:
    first = sample(study, ledger, 5)
    known = [StudyLabel(answer.place, "unsafe") for answer in first]
    again = sample_answers(study, ledger, PROMPTS, 20, 1, known)
    assert {answer.place.prompt_id: answer.label for answer in again if answer.label} == dict.fromkeys(
        ids(first), "unsafe"
    )


def test_what_cannot_be_labelled_is_one_line(study: Study, ledger: Ledger) -> None:
    for several in ({"samples": 4}, {"attack_score": "worst"}):
        with pytest.raises(StudyError, match="has several answers per prompt"):
            sample(replace(study, settings={**study.settings, **several}), ledger, 5)
    with pytest.raises(StudyError, match="has confirmed no context"):
        sample(replace(study, trials=tuple(replace(trial, confirmed=None) for trial in study.trials)), ledger, 5)
    with pytest.raises(
        StudyError, match="60 of 60 scored harmful prompts of study 'world' are no longer in its prompt"
    ):
        sample_answers(study, ledger, prompt_set(4, 4)[:8], 5)
    with Ledger("sqlite://") as empty, pytest.raises(StudyError, match="lacks 120 of its answers"):
        sample(study, empty, 5)
    with pytest.raises(StudyError, match=r"of the 60 scored .* none is sampled; give a larger --num"):
        _ = [sample(renamed(study, number), ledger, 1) for number in range(200)]  # in a third of the samples


def test_the_context_that_the_report_speaks_of_is_labelled_whatever_others_flip(study: Study, ledger: Ledger) -> None:
    first, second, *others = study.trials
    assert second.confirm is not None
    other = replace(study, trials=(first, second, *others), winner=second)
    assert {answer.place.context_id for answer in sample(other, ledger, 60)} == {"", second.context.context_id}
    with pytest.raises(StudyError, match="has confirmed no context"):
        sample(replace(study, winner=None), ledger, 60)


HOSTILE = [
    "=HYPERLINK(1)",
    "'=1+1",
    "''-2",
    "a\rb",
    "one\r\ntwo\n\nthree",
    "\u2028\u202e \U0001f512 ünï",
    '"quoted", and; more',
    "@sum",
    "-",
    "'",
    "",
    "x" * 200_000,
    "NA",
    "007",
    "<script>{{ 7*7 }}</script>",
]


@pytest.mark.parametrize("prompt_id", ["0123456789abcdef", "1234567890123456", "12345678e1234567"])
def test_hostile_answers_come_back_as_they_went_out(tmp_path: Path, prompt_id: str) -> None:
    answers = [
        AnswerToLabel(
            f"{text} ?".strip(), text, AnswerPlace("=study", prompt_id, "", "r", 1 / 3), "unsafe" if index % 2 else None
        )
        for index, text in enumerate(HOSTILE)
    ]
    write_labels(answers, tmp_path / "l.csv")
    result = read_labels([str(tmp_path / "l.csv")])
    assert [(row.prompt, row.answer, row.label, row.place) for row in result] == [
        (answer.prompt, answer.response, answer.label, answer.place) for answer in answers
    ]
    assert {row.source for row in result} == {"=study"}


def test_no_cell_is_run_or_taken_for_a_number_and_the_verdict_is_not_written(tmp_path: Path) -> None:
    write_labels(
        [AnswerToLabel("+1", "=1", AnswerPlace("@s", "12345678e1234567", "1234567890123456", "r", 0.5))],
        tmp_path / "l.csv",
    )
    content = (tmp_path / "l.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    header, row = content.decode("utf-8-sig").splitlines()
    assert header == '"label","prompt","response","study","prompt_id","context_id","rollout_id","probability"'
    assert row == """"","'+1","'=1","'@s","'12345678e1234567","'1234567890123456","r","0.5\""""


def test_characters_that_no_text_file_can_hold_are_replaced(tmp_path: Path) -> None:
    write_labels([AnswerToLabel("p", "a\0b\ud800c", AnswerPlace("s", "i", "", "r", 1.0))], tmp_path / "l.csv")
    assert read_labels([str(tmp_path / "l.csv")])[0].answer == "a\ufffdb\ufffdc"


def test_the_written_answer_is_judged_as_the_rollout_was(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    write_labels(sample(study, ledger, 40), tmp_path / "l.csv")
    judge, flips = MistakenJudge(), {flip.prompt_id: flip for flip in best_of(study).final.flips}
    for row in read_labels([str(tmp_path / "l.csv")]):
        assert row.place is not None
        flip = flips[row.place.prompt_id]
        [verdict] = judge.judge([Exchange(Prompt(row.prompt, "harmful"), row.answer)])
        assert verdict.label == (flip.after if row.place.context_id else flip.before)


def test_two_samples_together_are_sampled_as_their_probabilities_say(study: Study, ledger: Ledger) -> None:
    """A sample over one context and one over two doubt the prompts differently."""
    seen: Counter[str] = Counter()
    written: dict[str, float] = {}
    one_chance, two_chance = probabilities(study, ledger, 10), probabilities(study, ledger, 12, 2)
    for number in range(100):
        renamed_study = renamed(study, number)
        answers = [*sample(renamed_study, ledger, 10), *sample(renamed_study, ledger, 12, 2)]
        both = merge_labels(StudyLabel(answer.place, None) for answer in answers if not answer.place.context_id)
        seen.update(answer.place.prompt_id for answer in both)
        written |= {answer.place.prompt_id: answer.place.probability for answer in both}
    for id, num in seen.items():
        expected = max(one_chance[id], two_chance[id])
        assert written[id] <= expected + 1e-12
        assert num / 100 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 100) ** 0.5)


def test_sampling_of_the_study_finds_its_baseline(ledger: Ledger, study: Study) -> None:
    """The answers without context are looked up by the study's own sampling, not a default's."""
    assert Sampling(8).sampling_id != Sampling().sampling_id
    assert study.settings["max_tokens"] == 8
    assert {answer.response for answer in sample(study, ledger, 60) if not answer.place.context_id} == {
        "I refuse .", "Take the steps here ."
    }  # fmt: skip
