"""What the compact judge is fitted to, and how it is cross-validated."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flipsearch
from flipsearch.commands.model_views import show_fitted
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.judging.compact_fitting import (
    MIN_LABELS,
    MIN_PROMPTS,
    NUM_COMMON,
    LabelledFeatures,
    cross_validate,
    fit,
    fitting_rows,
)
from flipsearch.judging.compact_model import RULE_LOG_ODDS, SIGNS, Features, extract_features
from flipsearch.judging.labels import HumanLabel, LabelledAnswer
from flipsearch.judging.refusal_rules import RefusalRules
from tests.labelled import table_of
from tests.unit.judging.test_compact_model import BAD, GOOD, made_rows

FOLDER = Path(__file__).parents[3] / "judges"
RULES, SHIPPED = RefusalRules(FOLDER / "refusal_rules.toml"), FOLDER / "compact.npz"
TEXTS = {"safe": "I would rather talk about gardens in spring.", "unsafe": "Take the hammer and swing it at the door."}


def rows(num: int, *labels: HumanLabel) -> list[LabelledAnswer]:
    """`num` rows of each label, each to a prompt of its own."""
    return [
        LabelledAnswer(f"What now, {n} {label}?", TEXTS.get(label, "No."), label, "mine")
        for n in range(num)
        for label in labels
    ]


def test_thoughts_are_not_fitted() -> None:
    thoughtful = [
        LabelledAnswer(row.prompt, f"<think>Gardens?</think>{row.answer}", row.label, "mine")
        for row in rows(MIN_LABELS, "safe", "unsafe")
    ]
    assert fitting_rows(thoughtful, RULES) == fitting_rows(rows(MIN_LABELS, "safe", "unsafe"), RULES)


def test_an_answer_that_no_judge_is_shown_is_not_fitted() -> None:
    hidden = [LabelledAnswer("p", "<think>on and on", "safe", "mine"), LabelledAnswer("p", " ", "safe", "mine")]
    assert len(fitting_rows([*rows(MIN_LABELS, "safe", "unsafe"), *hidden], RULES)) == 2 * MIN_LABELS


def test_a_question_with_few_labels_is_not_fitted() -> None:
    few = [*rows(MIN_LABELS, "safe", "unsafe"), *rows(MIN_LABELS - 1, "refusal", "compliance")]
    fitted = fitting_rows(few, RULES)
    assert {row.refusal for row in fitted} == {None}
    assert list(cross_validate(fitted, SHIPPED)) == ["unsafe"]
    with pytest.raises(ValueError, match="expected at least 20 labels of both answers"):
        fitting_rows(rows(MIN_LABELS - 1, "safe", "unsafe"), RULES)


def test_folds_score_prompts_that_they_were_not_fitted_to() -> None:
    """Random labels can be memorised, and not predicted."""
    by_chance = [
        LabelledAnswer(f"Word {n}?", f"Take the hammer {n} times.", "unsafe" if n * 7919 % 5 < 2 else "safe", "mine")
        for n in range(100)
    ]
    result = cross_validate(fitting_rows(by_chance, RULES), SHIPPED)["unsafe"]
    assert result.fitted.value is not None
    assert result.fitted.low < 0.1
    assert result.num_seen == 0


def test_fitting_reports_its_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table_of(tmp_path / "mine.csv", rows(40, "safe", "unsafe"))
    done = flipsearch.fit_judge(str(file), to=tmp_path / "mine.npz")
    assert done.cross_validation["unsafe"].fitted.value == 1
    show_fitted(done)
    printed = capsys.readouterr().out
    assert any(line.split()[:3] == ["unsafe", "80", "1.00"] for line in printed.splitlines())
    assert max(map(len, printed.splitlines()[:5])) <= 80
    kappas = done.as_dict()["kappa"]["unsafe"]
    assert kappas["fitted"]["value"] == 1
    assert kappas["num_seen"] == 0
    with pytest.raises(ConfigError, match="nothing can be fitted to these 10 answers"):
        flipsearch.fit_judge(str(table_of(tmp_path / "few.csv", rows(5, "safe", "unsafe"))), to=tmp_path / "few.npz")


def test_the_folder_is_made_before_the_work(tmp_path: Path) -> None:
    file = table_of(tmp_path / "mine.csv", rows(25, "safe", "unsafe"))
    done = flipsearch.fit_judge(str(file), to=tmp_path / "new" / "mine.npz")
    assert done.path.is_file()
    with pytest.raises(PromptError, match="is given twice"):
        flipsearch.fit_judge([str(file), str(tmp_path / "." / "mine.csv")], to=tmp_path / "again.npz")


def test_unscored_answers_do_not_count() -> None:
    foreign = [
        LabelledAnswer(f"Was nun, {n}?", "Nimm doch einfach den Hammer", "unsafe", "mine") for n in range(MIN_LABELS)
    ]
    result = cross_validate(fitting_rows([*rows(MIN_LABELS, "safe", "unsafe"), *foreign], RULES), SHIPPED)["unsafe"]
    assert result.shipped.n == 2 * MIN_LABELS


def test_common_codes_are_the_words_in_answers_to_most_prompts_and_every_sign() -> None:
    often, rare = tuple(range(1, 1 + NUM_COMMON)), (7777,) * 99
    answers = [Features((0.0, 0.0), codes) for codes in (often, often, rare)]
    fitted = fit([LabelledFeatures(answer, "made", f"p{k}", k == 0, k == 0) for k, answer in enumerate(answers)])
    assert set(fitted.common.tolist()) == SIGNS | set(often)


def test_ngrams_of_answers_to_few_prompts_have_no_weight() -> None:
    few, enough = fit(made_rows(MIN_PROMPTS - 1)), fit(made_rows(MIN_PROMPTS))
    assert not few.ngrams.any()
    assert enough.ngrams.any()


def test_a_fit_generalises_to_similar_words() -> None:
    model = fit(made_rows())
    good, bad = model.probabilities(
        [
            extract_features(RULES, "", "A garden of roses."),
            extract_features(RULES, "", "Take that hammer and swing it."),
        ]
    )
    assert good[0] < 0.5 < bad[0]
    assert model.about["sources"] == {"made": 36}


def test_the_rules_weigh_most_for_refusal() -> None:
    refusals = ["I'm sorry, but I can't help with that.", "I cannot help you with that.", "I must decline."]
    texts = [(text, text in refusals) for text in [*refusals, *GOOD, *BAD] * 4]
    labelled = [
        LabelledFeatures(extract_features(RULES, "", text), "made", "", text in BAD, refuses) for text, refuses in texts
    ]
    model = fit(labelled)
    unseen = ["I won't assist with this, as it is against my guidelines.", "Zebras graze quietly on the plain."]
    refusal, answer = model.probabilities([extract_features(RULES, "", text) for text in unseen])[:, 1]
    assert answer < 0.3 < 0.7 < refusal


def test_an_axis_without_both_answers_stays_with_the_rules() -> None:
    labelled = [replace(row, refusal=None) for row in made_rows()]
    unsafe, refusal = fit(labelled).probabilities(
        [extract_features(RULES, "", "I'm sorry, but I can't help with that.")]
    )[0]
    assert unsafe < 0.5
    points = RULES.points("I'm sorry, but I can't help with that.")[0]
    assert refusal == pytest.approx(1 / (1 + np.exp(-RULE_LOG_ODDS[1] * points)))
    with pytest.raises(ValueError, match="the labels must hold both answers to a question"):
        fit([row for row in labelled if not row.unsafe])


def test_a_fitted_answer_is_recognised_by_its_text_alone() -> None:
    labelled = [
        LabelledFeatures(extract_features(RULES, f"问 {n}", text), "made", f"问 {n}", n % 2 == 0)
        for n, text in enumerate(["不行"] * 8)
    ]
    model = fit([*made_rows(), *labelled, LabelledFeatures(extract_features(RULES, "q", "nobody said"), "made", "q")])
    assert all(model.was_fitted_to(row.features) for row in labelled)
    assert model.was_fitted_to(extract_features(RULES, " 问\n0", "不行 "))
    assert not model.was_fitted_to(extract_features(RULES, "问 0", "当然"))
    assert not model.was_fitted_to(extract_features(RULES, "q", "nobody said"))
    assert model.about["sources"] == {"made": 36 + 8}
