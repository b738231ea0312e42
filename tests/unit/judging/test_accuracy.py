"""The agreement of a judge with human labels: which rows count, what is stored, and where."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import flipsearch
from flipsearch.commands.model_views import judge_table, show_judge
from flipsearch.core.errors import JudgeError, LedgerError
from flipsearch.core.records import Exchange, Label, Verdict
from flipsearch.judging.accuracy import JudgeAccuracy, load_accuracy, measure_judge, save_accuracy
from flipsearch.judging.contract import BATCH
from flipsearch.judging.labels import AnswerPlace, HumanLabel, LabelledAnswer
from flipsearch.judging.library import load_judge
from flipsearch.judging.panel import PanelJudge
from flipsearch.ledger import Ledger
from flipsearch.ledger.check import check_ledger
from flipsearch.results import JudgeCheck
from tests.labelled import measured, table_of

REFUSAL, STEPS = "I'm sorry, but I can't help with that.", "Sure, here is how. Step 1: go there. Step 2: take it."


class Says:
    """Gives every answer the label that it names ("unsafe", "safe", "unscored"), and notes the size of its calls."""

    name, identity = "says", "an identity of / any :text"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.calls.append(len(exchanges))
        return [self._verdict(exchange.completion) for exchange in exchanges]

    def _verdict(self, text: str) -> Verdict:
        label = Label(text.split()[0])
        return Verdict(label, reason="mumbled") if label is Label.UNSCORED else Verdict(label, 0.5)


def row(answer: str, label: HumanLabel | None, source: str = "set", prompt: str = "p") -> LabelledAnswer:
    return LabelledAnswer(prompt, answer, label, source)


def rows_of(*counts: tuple[str, HumanLabel | None, int]) -> list[LabelledAnswer]:
    """`num` rows of each answer and label, each to a prompt of its own."""
    texts = [(answer, label, n) for answer, label, num in counts for n in range(num)]
    return [row(answer, label, prompt=f"p{index}") for index, (answer, label, _) in enumerate(texts)]


ROWS = rows_of(("unsafe", "unsafe", 6), ("safe", "unsafe", 2), ("unsafe", "safe", 1), ("safe", "safe", 11))


def test_a_table_by_hand() -> None:
    result = measured(Says(), ROWS).questions["unsafe"]
    values = [row.estimate.value for row in (result.accuracy, result.sensitivity, result.specificity, result.coverage)]
    assert values == pytest.approx([17 / 20, 6 / 8, 11 / 12, 1.0])


def test_each_label_answers_its_question_and_partial_refusals_answer_none() -> None:
    rows = [
        LabelledAnswer("p1", REFUSAL, "refusal", "set"),
        LabelledAnswer("p2", STEPS, "compliance", "set"),
        LabelledAnswer("p3", STEPS, "unsafe", "set"),
        LabelledAnswer("p4", REFUSAL, "partial", "set"),
        LabelledAnswer("p5", STEPS, None, "study", AnswerPlace("study", "id", "", "r", 0.5)),
    ]
    result = measured(load_judge("refusal"), rows)
    assert list(result.questions) == ["refusal", "unsafe"]
    assert [value.accuracy.estimate.n for value in result.questions.values()] == [2, 1]
    assert (result.num_left_out, dict(result.sources)) == (1, {"set": 3})


def test_a_judge_without_p_refusal_is_not_wrong_about_refusals() -> None:
    rows = [row("safe", "refusal"), row("unsafe", "compliance", prompt="q"), row("safe", "safe", prompt="r")]
    result = measured(Says(), rows).questions["refusal"]
    assert result.coverage.estimate.value == 0
    assert result.accuracy.estimate.value is None


def test_unscored_answers_are_out_of_every_rate_but_coverage() -> None:
    result = measured(Says(), [*ROWS, *rows_of(("unscored", "unsafe", 20))]).questions["unsafe"]
    assert result.accuracy.estimate.value == pytest.approx(17 / 20)
    assert result.coverage.estimate.value == pytest.approx(0.5)


def test_sources_are_measured_separately() -> None:
    rows = [row("unsafe", "unsafe", "good", f"p{n}") for n in range(4)]
    rows += [row("safe", "unsafe", "bad", f"q{n}") for n in range(4)]
    result = measured(Says(), rows)
    shares = {source: item["unsafe"].accuracy.estimate.value for source, item in result.by_source.items()}
    assert shares == {"good": 1.0, "bad": 0.0}
    assert result.questions["unsafe"].accuracy.estimate.value == 0.5


def sampled_row(number: int, answer: str, label: HumanLabel, probability: float) -> LabelledAnswer:
    return LabelledAnswer(
        f"d{number}", answer, label, "study", AnswerPlace("study", f"d{number}", "", f"r{number}", probability)
    )


def test_sampled_answers_count_in_inverse_proportion_to_their_probability() -> None:
    """Of 20 doubtful answers, sampled with 1/2, half are wrong; of 100 sure ones, sampled with 1/10, none are."""
    doubtful = [sampled_row(n, "safe", ("safe", "unsafe")[n % 2], 0.5) for n in range(10)]
    sure = [sampled_row(n, "unsafe", "unsafe", 0.1) for n in range(10, 20)]
    result = measured(Says(), [*doubtful, *sure]).questions["unsafe"]
    assert result.accuracy.estimate.value == pytest.approx(110 / 120)
    assert result.sensitivity.estimate.value == pytest.approx(100 / 110)
    assert (result.accuracy.estimate.n, result.sensitivity.estimate.n) == (20, 15)
    assert result.kappa.n == 20
    by_chance = (110 / 120) * (100 / 120) + (10 / 120) * (20 / 120)
    assert result.kappa.value == pytest.approx((110 / 120 - by_chance) / (1 - by_chance))


def test_a_source_weighs_as_many_rows_as_it_has_whatever_their_probabilities() -> None:
    """Rows with a small probability represent many others of their own study, not of another set."""
    sampled = [sampled_row(n, "safe", "unsafe", 0.01) for n in range(5)]
    plain = [row("unsafe", "unsafe", "set", f"p{n}") for n in range(15)]
    result = measured(Says(), [*sampled, *plain]).questions["unsafe"]
    assert result.accuracy.estimate.value == pytest.approx(0.75)
    assert result.accuracy.estimate.n == 20


def test_answers_are_judged_in_batches_with_progress() -> None:
    judge, emitted = Says(), list[tuple[int, int]]()
    rows = rows_of(("safe", "safe", BATCH + 3))
    measured(judge, rows, lambda done, total: emitted.append((done, total)))
    assert judge.calls == [BATCH, 3]
    assert emitted == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]


def test_a_source_for_each_of_many_rows() -> None:
    """A column of ids taken for the source: as many sources as rows."""
    rows = [row("safe", "safe", f"s{n}", f"p{n}") for n in range(3000)]
    result = measured(Says(), rows)
    assert len(result.by_source) == 3000
    assert result.questions["unsafe"].specificity.estimate.value == 1


class Fails(Says):
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        raise ValueError("broken")


def test_an_impossible_measurement_is_one_line() -> None:
    with pytest.raises(JudgeError, match="no label answers a question"):
        measured(Says(), [row("safe", "partial"), row("safe", None)])
    with pytest.raises(JudgeError, match="judge 'says' failed: ValueError: broken"):
        measured(Fails(), ROWS)
    with pytest.raises(JudgeError, match=r"judge 'says' scores none of 4 answers: mumbled\."):
        measured(Says(), rows_of(("unscored", "safe", 4)))


def test_figures_are_kept_under_the_identity(tmp_path: Path) -> None:
    result = measured(Says(), ROWS)
    path = save_accuracy(result, tmp_path)
    assert path.parent == tmp_path / "_judges"
    assert load_accuracy(result.identity, tmp_path) == result
    assert load_accuracy("another", tmp_path) is None
    save_accuracy(measured(Says(), ROWS[:9]), tmp_path)
    again = load_accuracy(result.identity, tmp_path)
    assert again is not None
    assert again.sources == {"set": 9}
    assert [row.name for row in path.parent.iterdir()] == [path.name]


def test_figures_that_could_not_be_measured_are_kept_as_such(tmp_path: Path) -> None:
    result = measured(Says(), rows_of(("safe", "safe", 3)))
    save_accuracy(result, tmp_path)
    again = load_accuracy(result.identity, tmp_path)
    assert again == result
    assert again is not None
    assert again.questions["unsafe"].sensitivity.estimate.value is None


def test_a_panel_is_a_judge_of_its_own(tmp_path: Path) -> None:
    rows = [LabelledAnswer("p", REFUSAL, "safe", "s"), LabelledAnswer("q", STEPS, "unsafe", "s")]
    save_accuracy(measured(load_judge("refusal+compact:any"), rows), tmp_path)
    kept = load_accuracy(load_judge("refusal+compact:any").identity, tmp_path)
    assert kept is not None
    assert kept.judge == "refusal+compact:any"
    for other in ("refusal+compact:all", "refusal", "compact"):
        assert load_accuracy(load_judge(other).identity, tmp_path) is None


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"judge": "x"}', "\x00\xff"])
def test_a_damaged_file_is_one_line(tmp_path: Path, damaged: str) -> None:
    path = save_accuracy(measured(Says(), ROWS), tmp_path)
    path.write_bytes(damaged.encode("latin-1"))
    with pytest.raises(JudgeError, match=r"cannot be read as a judge's accuracy; run `flipsearch judge check` again"):
        load_accuracy(Says.identity, tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JudgeError, match=r"cannot write .*; free the disk or choose another folder"):
        save_accuracy(measured(Says(), ROWS), tmp_path / "file")


def test_json_has_every_figure_with_n_and_interval() -> None:
    printed = json.loads(json.dumps(measured(Says(), ROWS).as_dict()))
    assert printed["question"] == "unsafe"
    for name in ("accuracy", "kappa", "f1", "sensitivity", "specificity", "coverage"):
        assert printed[name] == printed["questions"]["unsafe"][name]
        assert printed[name]["low"] <= printed[name]["value"] <= printed[name]["high"]
        assert printed[name]["n"] > 0
    assert printed["sources"] == {"set": 20}


def long_names(num: int) -> JudgeAccuracy:
    rows = [
        row(answer, "unsafe" if n % 3 else "safe", f"[red]a source with a long name \x1b[31m number {n % num}", f"p{n}")
        for n, answer in enumerate(["safe", "unsafe", "unsafe", "safe"] * 500)
    ]
    return measured(Says(), rows)


def test_the_table_fits_into_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_judge(JudgeCheck(long_names(3), tmp_path / "x.json", (tmp_path,)))
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("kappa"))]
    assert len(table) == 1 + 1 + 3
    assert all(len(line) <= 80 for line in table)
    assert all("…" not in line.split("  ", 2)[-1][30:] for line in table)  # figures are whole
    assert "2,000" in table[1]
    assert "\x1b" not in "".join(lines)
    assert "[red]a source" in "".join(table)  # text, not markup
    assert str(tmp_path / "x.json") in lines[-4]
    assert lines[-1].endswith(f"flipsearch report {tmp_path}")


def test_many_sources_are_counted_not_listed() -> None:
    assert judge_table(long_names(40)).row_count == 1 + 10 + 1
    assert judge_table(measured(Says(), ROWS)).row_count == 1  # one source says no more than all


def test_labels_that_a_judge_was_fitted_to_are_named(tmp_path: Path) -> None:
    rows = labelled("mine", 60)
    file = table_of(tmp_path / "mine.csv", rows)
    judge = load_judge(flipsearch.fit_judge(str(file), to=tmp_path / "it's mine, a+b (1).npz").judge)
    others = [replace(row, prompt=f"Again, {row.prompt}") for row in rows]
    assert measured(judge, rows + others).fitted_to == {"unsafe": 60}
    assert measured(load_judge("refusal"), rows).fitted_to == {}
    assert measured(judge, rows).questions["unsafe"].kappa.value == 1


def test_no_answer_is_judged_twice(tmp_path: Path) -> None:
    judge, again = Says(), Says()
    first = measure_judge(judge, ROWS, tmp_path)
    assert measure_judge(again, [*ROWS, row("unsafe", "unsafe", prompt="new")], tmp_path) != first
    assert (sum(judge.calls), sum(again.calls)) == (len(ROWS), 1)


def test_figures_that_are_replaced_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (table_of(tmp_path / f"{name}.csv", labelled(name, num)) for name, num in (("few", 4), ("many", 40)))
    first = flipsearch.check_judge("refusal", str(many), reports=tmp_path / "reports")
    second = flipsearch.check_judge("refusal", str(few), reports=tmp_path / "reports")
    again = flipsearch.check_judge("refusal", str(few), reports=tmp_path / "reports")
    assert (first.replaced, second.replaced, again.replaced) == ({}, {"many": 40}, {"few": 4})
    show_judge(second)
    assert "replaces      figures on many (40)" in capsys.readouterr().out
    show_judge(again)
    assert "replaces" not in capsys.readouterr().out


def labelled(source: str, num: int) -> list[LabelledAnswer]:
    answers: list[tuple[str, HumanLabel]] = [(REFUSAL, "safe"), (STEPS, "unsafe")]
    return [LabelledAnswer(f"How {n}?", *answers[n % 2], source) for n in range(num)]


def test_an_answer_of_two_samples_counts_once() -> None:
    first = [sampled_row(n, "safe", "safe", 0.5) for n in range(4)]
    second = [sampled_row(n, "safe", "unsafe" if n == 0 else None, 0.8) for n in range(3)]  # type: ignore[arg-type]
    result = measured(Says(), [*first, *second]).questions["unsafe"]
    assert result.accuracy.estimate.n == 4
    assert result.specificity.estimate.n == 3  # the last label of the first one counts


def test_each_judge_has_a_ledger_of_its_own_and_members_theirs(tmp_path: Path) -> None:
    first, second = Says(), Says()
    second.identity = "another"
    measure_judge(PanelJudge([first, second], "any"), ROWS, tmp_path)
    assert len(list(tmp_path.glob("*.db"))) == 2
    with Ledger(next(iter(tmp_path.glob("*.db")))):  # somebody works at one of them
        three = Says()
        three.identity = "a third"
        assert measure_judge(three, ROWS, tmp_path)
    measure_judge(first, ROWS, tmp_path)
    assert sum(first.calls) == len(ROWS)
    assert all(check_ledger(path).is_sound for path in tmp_path.glob("*.db"))


def test_a_judge_that_fails_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    class Fails(Says):
        def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            if self.calls:
                raise OSError("gone")
            self.calls.append(len(exchanges))
            return [self._verdict(exchange.completion) for exchange in exchanges]

    failing = Fails()
    failing.calls.append(1)
    with pytest.raises(JudgeError, match="gone"):
        measure_judge(failing, ROWS, tmp_path / "reports" / "_judges")
    assert list(tmp_path.iterdir()) == []
    many = rows_of(("safe", "safe", BATCH + 1))
    with pytest.raises(JudgeError, match="gone"):
        measure_judge(Fails(), many, tmp_path)
    again = Says()
    measure_judge(again, many, tmp_path)
    assert again.calls == [1]  # the batch before the failure was kept


@pytest.mark.parametrize("damaged", ["", "{}", '{"fitted_to": ["another version"]}'])
def test_figures_that_cannot_be_read_are_measured_anew(tmp_path: Path, damaged: str) -> None:
    file, reports = table_of(tmp_path / "few.csv", labelled("few", 4)), tmp_path / "reports"
    done = flipsearch.check_judge("refusal", str(file), reports=reports)
    done.path.write_text(damaged)
    with pytest.raises(JudgeError, match="run `flipsearch judge check` again"):
        load_accuracy(done.accuracy.identity, reports)
    again = flipsearch.check_judge("refusal", str(file), reports=reports)
    assert (again.accuracy, again.replaced) == (done.accuracy, {})
    assert load_accuracy(done.accuracy.identity, reports) == done.accuracy


def test_a_ledger_at_which_another_works_is_left_alone(tmp_path: Path) -> None:
    measure_judge(Says(), ROWS, tmp_path)
    [place] = tmp_path.glob("*.db")
    with Ledger(place), pytest.raises(LedgerError, match="in use"):
        measure_judge(Says(), ROWS, tmp_path)
    assert check_ledger(place).is_sound
    again = Says()
    measure_judge(again, ROWS, tmp_path)
    assert again.calls == []
