"""Files of labels are read whatever their columns are called, and labels are stored with their study."""

from dataclasses import replace
from pathlib import Path

import pytest

from flipsearch.core.errors import JudgeError, PromptError
from flipsearch.core.studies import Study
from flipsearch.judging.accuracy import load_labels, save_labels
from flipsearch.judging.labels import (
    AnswerPlace,
    HumanLabel,
    LabelledAnswer,
    StudyLabel,
    merge_labels,
    read_labels,
    study_labels,
)
from flipsearch.ledger import Ledger
from tests.labelled import best_of, mistaken_study


@pytest.fixture(scope="module")
def study() -> Study:
    with Ledger("sqlite://") as ledger:
        return mistaken_study(ledger)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_columns_labels_and_sources(tmp_path: Path) -> None:
    path = write(
        tmp_path, "Question,completion,LABEL,source\nq1,a1,Unsafe,s\nq2,,safe,\nq3,a3,refusal,s\nq4,a4,partial,s\n"
    )
    result = read_labels([path])
    assert [(row.prompt, row.answer, row.label, row.source) for row in result] == [
        ("q1", "a1", "unsafe", "s"),
        ("q2", "", "safe", "labels.csv"),
        ("q3", "a3", "refusal", "s"),
        ("q4", "a4", "partial", "s"),
    ]
    assert [row.unsafe for row in result] == [True, False, False, None]
    assert [row.refusal for row in result] == [None, None, True, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,text,label\nq,a,safe\n", "no column of responses among prompt, text, label"),
        ("prompt,response,label\nq,a,unsave\n", "unknown label 'unsave'. Did you mean unsafe"),
        ("prompt,response,label\n ,a,safe\n", "the prompt is empty"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_labels([write(tmp_path, text)])


def test_a_file_of_a_study_that_lost_a_column_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response,label,study,prompt_id,context_id,probability\np,a,safe,s,i,,0.5\n")
    with pytest.raises(PromptError, match="sampled from a study, but without the column rollout_id"):
        read_labels([str(path)])
    path.write_text("prompt,response,label,prompt_id,context_id,probability\np,a,safe,i,,0.5\n")
    assert read_labels([str(path)])[0].place is None


def study_row(
    study: Study, prompt_id: str, label: HumanLabel | None, context_id: str = "", chance: float = 0.5
) -> LabelledAnswer:
    rollout = rollout_of(study, prompt_id, context_id)
    return LabelledAnswer("p", "a", label, study.name, AnswerPlace(study.name, prompt_id, context_id, rollout, chance))


def rollout_of(study: Study, prompt_id: str, context_id: str) -> str:
    if not context_id:
        return study.answers_without_context().get(prompt_id, ("none",))[0]
    flips = best_of(study).confirm.flips  # type: ignore[union-attr]
    return next(flip.rollout_ids[0] for flip in flips if flip.prompt_id == prompt_id)


def test_labels_are_kept(study: Study, tmp_path: Path) -> None:
    id = best_of(study).confirm.flips[0].prompt_id  # type: ignore[union-attr]
    labels = study_labels(study, [study_row(study, id, "unsafe"), LabelledAnswer("p", "a", "safe", "another set")])
    assert [(label.place.prompt_id, label.label) for label in labels] == [(id, "unsafe")]
    assert load_labels(tmp_path) == []
    save_labels(labels, tmp_path)
    assert load_labels(tmp_path) == labels
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("damaged", ["", "[", "{}", '[{"place": 1}]', "\x00"])
def test_a_damaged_file_of_labels_is_one_line(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "labels.json").write_text(damaged)
    with pytest.raises(JudgeError, match=r"labels\.json' cannot be read; delete it and run"):
        load_labels(tmp_path)


def test_answers_that_the_study_does_not_have_are_refused(study: Study) -> None:
    id = best_of(study).confirm.flips[0].prompt_id  # type: ignore[union-attr]
    renamed = replace(study, base_answers=(("another",),) * len(study.prompts))  # of another model, of one name
    for bad in (
        study_row(study, "another", "safe"),
        study_row(study, id, "safe", "another"),
        study_row(renamed, id, "safe"),
    ):
        with pytest.raises(JudgeError, match=r"that study 'world' does not have; is it another study of that name\?"):
            study_labels(study, [bad])


def test_labels_that_contradict_each_other_are_refused(study: Study) -> None:
    id = best_of(study).confirm.flips[0].prompt_id  # type: ignore[union-attr]
    with pytest.raises(JudgeError, match="is labelled both safe and unsafe; settle it"):
        study_labels(study, [study_row(study, id, "safe"), study_row(study, id, None), study_row(study, id, "unsafe")])
    same = study_labels(study, [study_row(study, id, "safe", chance=0.2), study_row(study, id, "safe", chance=0.6)])
    assert same == [StudyLabel(AnswerPlace(study.name, id, "", study.answers_without_context()[id][0], 0.6), "safe")]


def test_merged_samples_lose_no_label() -> None:
    old = [
        StudyLabel(AnswerPlace("s", "a", "", "r", 0.5), "safe"),
        StudyLabel(AnswerPlace("s", "b", "", "r", 0.4), "unsafe"),
    ]
    new = [
        StudyLabel(AnswerPlace("s", "a", "", "r", 0.3), None),
        StudyLabel(AnswerPlace("s", "c", "", "r", 0.2), "safe"),
    ]
    merged = {label.place.prompt_id: (label.place.probability, label.label) for label in merge_labels(old, new)}
    assert merged == {"a": (0.5, "safe"), "b": (0.4, "unsafe"), "c": (0.2, "safe")}
    corrected = merge_labels(old, [StudyLabel(AnswerPlace("s", "a", "", "r", 0.5), "unsafe")])
    assert corrected[0].label == "unsafe"


def test_the_columns_and_labels_of_a_study_may_be_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        "Label,Prompt,Response,Study,Prompt_ID,Context_Id,ROLLOUT_ID,PROBABILITY\n"
        " UNSAFE ,q,a,s,p,,r,0.5\n,q,a,s,p,c,r,0.5\n"
    )
    first, second = read_labels([str(tmp_path / "l.csv")])
    assert (first.label, first.place) == ("unsafe", AnswerPlace("s", "p", "", "r", 0.5))
    assert (second.label, second.place) == (None, AnswerPlace("s", "p", "c", "r", 0.5))
