"""Labelled answers are read whatever their columns are called, and what cannot be read is named."""

from pathlib import Path

import pytest

from flipsearch.core.errors import PromptError
from flipsearch.judging.labels import read_labels


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_columns_labels_and_sources(tmp_path: Path) -> None:
    path = write(
        tmp_path, "Question,completion,LABEL,source\nq1,a1,Unsafe,s\nq2,,safe,\nq3,a3,refusal,s\nq4,a4,partial,s\n"
    )
    found = read_labels([path])
    assert [(row.prompt, row.answer, row.label, row.source) for row in found] == [
        ("q1", "a1", "unsafe", "s"),
        ("q2", "", "safe", "labels.csv"),
        ("q3", "a3", "refusal", "s"),
        ("q4", "a4", "partial", "s"),
    ]
    assert [row.unsafe for row in found] == [True, False, False, None]
    assert [row.refusal for row in found] == [None, None, True, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt,text,label\nq,a,safe\n", "no column of responses among prompt, text, label"),
        ("prompt,response,label\nq,a,unsave\n", "unknown label 'unsave'. Did you mean unsafe"),
        ("prompt,response,label\n ,a,safe\n", "the prompt is empty"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        read_labels([write(tmp_path, text)])


def test_a_file_of_a_study_that_lost_a_column_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response,label,study,prompt_id,context_id,probability\np,a,safe,s,i,,0.5\n")
    with pytest.raises(PromptError, match="drawn from a study, but without the column rollout_id"):
        read_labels([str(path)])
    path.write_text("prompt,response,label,prompt_id,context_id,probability\np,a,safe,i,,0.5\n")
    assert read_labels([str(path)])[0].place is None
