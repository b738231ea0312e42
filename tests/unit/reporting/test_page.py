"""What the page shows of second judges and of the judge's errors: only what there is, and hostile names as text."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flipsearch.commands.console import judge_lines
from flipsearch.core.studies import Study
from flipsearch.judging.correction import with_judge_error
from flipsearch.judging.labels import AnswerPlace, LabelledAnswer
from flipsearch.judging.library import OtherJudges
from flipsearch.ledger import Ledger
from flipsearch.reporting.card import context_card
from flipsearch.reporting.columns import csv_text, leaderboard, rows
from flipsearch.reporting.files import STUDY
from flipsearch.reporting.page import leaderboard_page
from tests.labelled import MistakenJudge, annotate, measured, mistaken_study, sample
from tests.unit.searching.test_opinions import BlindJudge, study_of
from tests.world import COMPLIANCE, REFUSAL

OTHERS = "Second judges"
HOSTILE = "<script>alert(1)</script>{{ 7*7 }}\u202e"


def has_corrected(page: str) -> bool:
    return "Corrected for the judge" in page


def with_second_judge(name: str = "second") -> Study:
    judge = BlindJudge("second")
    judge.name = name
    return study_of(others=OtherJudges(None, (judge,)))


def with_accuracy(study: Study, source: str = "a set", drawn_from: str = "") -> Study:
    """The study, its judge measured on a few answers of a source, drawn from a study if one is named."""

    def place(n: int) -> AnswerPlace | None:
        return AnswerPlace(drawn_from, f"p{n}", "", f"r{n}", 1.0) if drawn_from else None

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
    assert '<th colspan="3">second</th>' in section
    assert not has_corrected(page)
    assert study.winner is not None
    [result] = context_card(study, study.winner)["second_judgements"]
    assert result["judge"] == "second"
    assert result["flip_rate"]["n"] > 0
    shown = rows(study)
    assert shown[0]["flip_rate (second)"] == result["flip_rate"]["value"]
    assert [row["flip_rate (second)"] is not None for row in shown] == [
        bool(trial.second_judgements) for trial in study.trials
    ]


def test_hostile_names_are_text(plain: Study) -> None:
    for study in (with_second_judge(HOSTILE), with_accuracy(plain, HOSTILE)):
        page = leaderboard_page(study)
        assert "<script" not in page
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
    assert all(trial.corrected is None or trial.corrected.value is None for trial in study.trials)
    assert has_corrected(leaderboard_page(study))
    assert judge_lines(study) == []


NEW = {
    "second_judgements",
    "corrected",
    "risk_reduction",
    "confirm_judge_id",
    "judge_error",
    "confirm_judge",
    "second_judges",
}


def without_new(value: Any) -> Any:
    """A study's JSON as an earlier version wrote it."""
    if isinstance(value, dict):
        return {key: without_new(inner) for key, inner in value.items() if key not in NEW}
    return [without_new(item) for item in value] if isinstance(value, list) else value


def test_a_study_of_before_other_judges_is_read_and_shown(plain: Study) -> None:
    old = STUDY.validate_json(json.dumps(without_new(json.loads(STUDY.dump_json(plain)))))
    assert "confirm_judge" not in old.settings
    assert replace(old, settings=plain.settings) == plain
    assert OTHERS not in leaderboard_page(old)
    assert has_corrected(leaderboard_page(with_accuracy(old)))
    assert old.winner is not None
    assert context_card(old, old.winner)["judge"]["name"] == plain.settings["judge"]


def test_a_study_is_read_back_with_second_judges_and_human_labels(plain: Study, labelled_study: Study) -> None:
    for study in (with_second_judge(), with_accuracy(plain), labelled_study):
        assert STUDY.validate_json(STUDY.dump_json(study)) == study
