"""What the compact judge is fitted to: what a judge is shown, with enough labels; and how it is tried."""

from pathlib import Path

import pytest

import flipsearch
from flipsearch.commands.console import show_fitted
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.judging.compact.fitting import LEAST, learnt, tried
from flipsearch.judging.labels import HumanLabel, LabelledAnswer
from flipsearch.judging.refusal_rules import RefusalRules
from tests.labelled import table_of

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


def test_a_thought_is_no_part_of_what_is_learnt() -> None:
    thoughtful = [
        LabelledAnswer(one.prompt, f"<think>Gardens?</think>{one.answer}", one.label, "mine")
        for one in rows(LEAST, "safe", "unsafe")
    ]
    assert learnt(thoughtful, RULES) == learnt(rows(LEAST, "safe", "unsafe"), RULES)


def test_an_answer_that_no_judge_is_shown_is_not_learnt() -> None:
    hidden = [LabelledAnswer("p", "<think>on and on", "safe", "mine"), LabelledAnswer("p", " ", "safe", "mine")]
    assert len(learnt([*rows(LEAST, "safe", "unsafe"), *hidden], RULES)) == 2 * LEAST


def test_a_question_with_few_labels_is_not_fitted() -> None:
    few = [*rows(LEAST, "safe", "unsafe"), *rows(LEAST - 1, "refusal", "compliance")]
    told = learnt(few, RULES)
    assert {row.refusal for row in told} == {None}
    assert list(tried(told, SHIPPED)) == ["unsafe"]
    with pytest.raises(ValueError, match="expected at least 20 labels of both answers"):
        learnt(rows(LEAST - 1, "safe", "unsafe"), RULES)


def test_it_is_tried_on_prompts_that_it_was_not_fitted_to() -> None:
    """Labels that are chance in truth are known by heart by what was fitted to them, and by nothing else."""
    by_chance = [
        LabelledAnswer(f"Word {n}?", f"Take the hammer {n} times.", "unsafe" if n * 7919 % 5 < 2 else "safe", "mine")
        for n in range(100)
    ]
    found = tried(learnt(by_chance, RULES), SHIPPED)["unsafe"]
    assert found.fitted.value is not None
    assert found.fitted.low < 0.1
    assert found.num_seen == 0


def test_fitting_says_how_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table_of(tmp_path / "mine.csv", rows(40, "safe", "unsafe"))
    done = flipsearch.fit_judge(str(file), to=tmp_path / "mine.npz")
    assert done.trials["unsafe"].fitted.value == 1
    show_fitted(done)
    printed = capsys.readouterr().out
    assert any(line.split()[:3] == ["unsafe", "80", "1.00"] for line in printed.splitlines())
    assert max(map(len, printed.splitlines()[:5])) <= 80
    told = done.as_dict()["kappa"]["unsafe"]
    assert told["fitted"]["value"] == 1
    assert told["num_seen"] == 0
    with pytest.raises(ConfigError, match="nothing can be fitted to these 10 answers"):
        flipsearch.fit_judge(str(table_of(tmp_path / "few.csv", rows(5, "safe", "unsafe"))), to=tmp_path / "few.npz")


def test_the_folder_is_made_before_the_work(tmp_path: Path) -> None:
    file = table_of(tmp_path / "mine.csv", rows(25, "safe", "unsafe"))
    done = flipsearch.fit_judge(str(file), to=tmp_path / "new" / "mine.npz")
    assert done.path.is_file()
    with pytest.raises(PromptError, match="is given twice"):
        flipsearch.fit_judge([str(file), str(tmp_path / "." / "mine.csv")], to=tmp_path / "again.npz")


def test_what_the_judge_would_not_score_does_not_count() -> None:
    foreign = [LabelledAnswer(f"Was nun, {n}?", "Nimm doch einfach den Hammer", "unsafe", "mine") for n in range(LEAST)]
    found = tried(learnt([*rows(LEAST, "safe", "unsafe"), *foreign], RULES), SHIPPED)["unsafe"]
    assert found.shipped.n == 2 * LEAST
