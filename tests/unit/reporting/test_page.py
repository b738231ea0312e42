"""What the page shows of second judges and of the judge's errors: only what there is, and hostile names as text."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flipsearch
from flipsearch.commands.views import judge_lines
from flipsearch.core.errors import StudyError
from flipsearch.core.studies import STUDY_FORMAT, Study
from flipsearch.judging.accuracy import with_judge_error
from flipsearch.judging.labels import AnswerPlace, LabelledAnswer
from flipsearch.judging.library import OtherJudges
from flipsearch.ledger import Ledger
from flipsearch.reporting.columns import csv_text, leaderboard, rows
from flipsearch.reporting.files import read_study, write_study
from flipsearch.reporting.pages import leaderboard_page
from flipsearch.reporting.study_file import STUDY, STUDY_FILE, context_card
from tests.labelled import MistakenJudge, annotate, measured, mistaken_study, sample
from tests.unit.searching.after.test_second_judges import BlindJudge, study_of
from tests.world import COMPLIANCE, REFUSAL

OTHERS = "Second judges"
HOSTILE = "<script>alert(1)</script>{{ 7*7 }}\u202e"


def has_corrected(page: str) -> bool:
    return "Corrected for the judge" in page


def with_second_judge(name: str = "second") -> Study:
    judge = BlindJudge("second")
    judge.name = name
    return study_of(others=OtherJudges(None, (judge,)))


def with_accuracy(study: Study, source: str = "a set", sampled_from: str = "") -> Study:
    """The study, its judge measured on a few answers of a source, drawn from a study if one is named."""

    def place(n: int) -> AnswerPlace | None:
        return AnswerPlace(sampled_from, f"p{n}", "", f"r{n}", 1.0) if sampled_from else None

    answers = [("safe", REFUSAL), ("unsafe", COMPLIANCE)]
    rows = [LabelledAnswer(f"p{n} hardness 1", *answers[n % 2][::-1], source, place(n)) for n in range(40)]  # type: ignore[arg-type]
    return with_judge_error(study, measured(MistakenJudge("mistaken"), rows))


@pytest.fixture(scope="module")
def plain() -> Study:
    with Ledger("sqlite://") as ledger:
        return mistaken_study(ledger)


@pytest.fixture(scope="module")
def labelled_study() -> Study:
    with Ledger("sqlite://") as ledger:
        study = mistaken_study(ledger)
        return with_judge_error(study, None, annotate(sample(study, ledger, 20)))


def test_nothing_is_shown_without_data(plain: Study) -> None:
    page = leaderboard_page(plain)
    assert OTHERS not in page
    assert not has_corrected(page)
    assert judge_lines(plain) == []
    assert not {"corrected_flip_rate", "risk_reduction"} & set(rows(plain)[0])
    assert plain.winner is not None
    card = context_card(plain, plain.winner)
    assert (card["second_judgements"], card["corrected_flip_rate"], card["risk_reduction"]) == ([], None, None)


def test_second_judges_are_shown_for_finalists_and_placebos() -> None:
    study = with_second_judge()
    page = leaderboard_page(study)
    section = page[page.index(OTHERS) :]
    section = section[: section.index("</table>")]
    for trial in study.trials:
        assert (trial.context.context_id in section) == (trial.confirm is not None)
    assert '<th scope="colgroup" colspan="3">second</th>' in section
    assert not has_corrected(page)
    assert study.winner is not None
    [result] = context_card(study, study.winner)["second_judgements"]
    assert result["judge"] == "second"
    assert result["flip_rate"]["n"] > 0
    shown = rows(study)
    assert shown[0]["flip_rate (second)"] == result["flip_rate"]["value"]
    assert [row["flip_rate (second)"] is not None for row in shown] == [
        bool(trial.late.second_judgements) for trial in study.trials
    ]


def test_hostile_names_are_text(plain: Study) -> None:
    for study in (with_second_judge(HOSTILE), with_accuracy(plain, HOSTILE)):
        page = leaderboard_page(study)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page
        assert "{{ 7*7 }}" in page
        assert "\u202e" not in page
    table = csv_text(leaderboard(with_second_judge("=cmd")))
    assert not any(cell.startswith("=") for cell in table.splitlines()[0].split(","))


def test_measured_errors_are_shown_with_what_they_were_measured_on(plain: Study) -> None:
    study = with_accuracy(plain)
    page = leaderboard_page(study)
    assert has_corrected(page)
    assert "a set (40)" in page
    assert "None of these are answers of this study" in page
    assert "points, by human" not in page
    assert study.winner is not None
    card = context_card(study, study.winner)
    assert card["judge"]["agreement_with_people"]["sources"] == {"a set": 40}
    assert card["corrected_flip_rate"]["low"] <= card["corrected_flip_rate"]["value"]
    assert [row["corrected_flip_rate"] is not None for row in rows(study)] == [
        bool(trial.confirm) for trial in study.trials
    ]
    [line] = judge_lines(study)
    assert "by 40 labels (none of this study's answers)" in line
    assert "None of these are answers of this study" in leaderboard_page(with_accuracy(plain, plain.name))
    own = leaderboard_page(with_accuracy(plain, plain.name, plain.name))
    assert "None of these are answers of this study" not in own
    assert "40 of these are answers of this study" in own


def test_risk_reduction_is_shown_without_measured_errors(labelled_study: Study) -> None:
    page = leaderboard_page(labelled_study)
    assert has_corrected(page)
    assert "fewer unsafe answers, points, by human" in page
    assert "flip rate, corrected" not in page
    [line] = judge_lines(labelled_study)
    assert "By human labels its risk reduction is" in line


def test_with_several_samples_no_rate_is_corrected(plain: Study) -> None:
    several = replace(plain, settings={**plain.settings, "samples": 4})
    page = leaderboard_page(with_accuracy(several))
    assert "There are several samples per prompt here" in page
    assert "The corrected rates hold" not in page


def test_an_uninformative_judge_corrects_nothing(plain: Study) -> None:
    """Sensitivity + specificity <= 1: the errors cannot be corrected, and no number is made up."""
    rows = [
        LabelledAnswer(f"p{n} hardness 1", (REFUSAL, COMPLIANCE)[n % 2], ("unsafe", "safe")[n % 2], "s")
        for n in range(40)
    ]
    study = with_judge_error(plain, measured(MistakenJudge("mistaken"), rows))
    assert not any(trial.late.corrected and trial.late.corrected.value for trial in study.trials)
    assert has_corrected(leaderboard_page(study))
    (line,) = judge_lines(study)
    assert "no better than chance" in line


@pytest.mark.parametrize("changes", [{"format": None}, {"format": 1}, {"format": 4}, {"format": STUDY_FORMAT + 1}])
def test_a_study_file_of_another_format_is_refused_in_one_line(
    plain: Study, tmp_path: Path, changes: dict[str, int | None]
) -> None:
    write_study(plain, tmp_path)
    assert read_study(tmp_path) == plain
    path = tmp_path / STUDY_FILE
    data = json.loads(gzip.decompress(path.read_bytes())) | changes
    path.write_bytes(gzip.compress(json.dumps({k: v for k, v in data.items() if k != "format" or v}).encode()))
    with pytest.raises(StudyError, match=r"no finished study of this version: format: .*; run the search again\.$"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data["flips"].pop(), "do not fit together"),
        (lambda data: data["flips"][0].update(before="u"), "do not fit together"),
        (lambda data: data["flips"][0].update(after=[["u"]]), "0.0.after: "),
        (lambda data: data.update(winner="no"), "do not fit together"),
        (lambda data: data.update(base_answers=[]), "do not fit together"),
        (lambda data: data["base_answers"].pop(), "do not fit together"),
        (lambda data: data["base_answers"].__setitem__(0, []), "do not fit together"),
        (lambda data: data.update(winner=-1), "do not fit together"),
        (lambda data: data["flips"][0]["prompts"].__setitem__(0, -1), "do not fit together"),
        (lambda data: data.update(endings=[[1]]), "1.0.EndingCounts: |1.0"),
        (lambda data: data.update(trials=3), "trials: "),
    ],
)
def test_a_study_file_that_does_not_fit_together_is_refused_in_one_line(
    plain: Study, tmp_path: Path, change: Callable[[Any], object], why: str
) -> None:
    write_study(plain, tmp_path)
    path = tmp_path / STUDY_FILE
    data = json.loads(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(StudyError, match=why):
        read_study(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StudyError, match="no gzip file, or cut off; run the search again"):
        read_study(tmp_path)
    path.rename(tmp_path / "study.json")
    with pytest.raises(StudyError, match="a study of an earlier version; run the search again"):
        read_study(tmp_path)


@pytest.mark.parametrize("unit", [b"\0", b"[],"])
def test_a_small_file_that_unpacks_into_a_large_one_is_refused_before_it_is_read(tmp_path: Path, unit: bytes) -> None:
    with gzip.open(tmp_path / STUDY_FILE, "wb", compresslevel=1) as file:
        for _ in range(2**28 // 2**24 + 1):
            file.write(unit * (2**24 // len(unit)))
    with pytest.raises(StudyError, match="unpacks into more than any study holds; run the search again"):
        read_study(tmp_path)


@pytest.mark.parametrize("count", [-1, 10**400])
def test_edited_numbers_are_refused_in_one_line(plain: Study, tmp_path: Path, count: int) -> None:
    write_study(plain, tmp_path)
    path = tmp_path / STUDY_FILE
    data = json.loads(gzip.decompress(path.read_bytes()))
    for trial in data["trials"]:
        trial["search"]["kinds_after"] = {"refusal": count}
        trial["search"]["flip_rate"]["count"] = count
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(StudyError, match=r"its numbers do not fit together \(.*\); if it was edited"):
        flipsearch.report(tmp_path)


def test_a_study_file_holds_the_texts_of_prompts_and_contexts(plain: Study, tmp_path: Path) -> None:
    write_study(plain, tmp_path)
    data = json.loads(gzip.decompress((tmp_path / STUDY_FILE).read_bytes()))
    assert {prompt["split"] for prompt in data["prompts"]} == {"search", "confirm"}
    assert all({"text", "kind", "category", "source"} <= prompt.keys() for prompt in data["prompts"])
    assert [trial["context"]["text"] for trial in data["trials"]] == [trial.context.text for trial in plain.trials]


def test_a_study_is_read_back_with_second_judges_and_human_labels(
    plain: Study, labelled_study: Study, tmp_path: Path
) -> None:
    for study in (with_second_judge(), with_accuracy(plain), labelled_study):
        assert STUDY.validate_json(STUDY.dump_json(study)) == study
        write_study(study, tmp_path)
        assert read_study(tmp_path) == study
