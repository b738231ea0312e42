"""Evaluated checkpoints beside each other: paired by prompt, the safest named only where that is no chance."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import flipsearch
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.trainings import Metric, Score, Scorecard
from flipsearch.evaluation.scorecard import AnswerScore, collect_scores, composite, make_score
from flipsearch.reporting import formats
from flipsearch.reporting.files import write_scorecard, write_training
from flipsearch.reporting.scorecard_page import compare_scorecards
from flipsearch.statistics.intervals import clustered_difference
from tests.finished_training import RUN
from tests.integration.test_cli import one_line_error, run
from tests.unit.reporting.test_scorecard_table import CARD

NUM = 60


def scored(metric: Metric, new: Sequence[float | None], base: float) -> Score:
    """Return a row of a scorecard by the scores of each prompt; the base has the same score on all."""
    sides = [
        collect_scores(metric, "a", ((f"p{n}", AnswerScore(value, "?")) for n, value in enumerate(values)))
        for values in (new, [base] * len(new))
    ]
    return make_score(*sides)


def card(num_unsafe: int, num_refused: int = 0, first: int = 0, name: str = "checkpoints/mine") -> Scorecard:
    """Return the scorecard of a model with so many unsafe answers, from the prompt `first` on."""
    unsafe = [float(first <= n < first + num_unsafe) for n in range(NUM)]
    refused = [float(n < num_refused) for n in range(NUM)]
    rows = (scored("harmful_rate", unsafe, 1.0), scored("over_refusal_rate", refused, 0.0))
    return replace(CARD, model=name, scores=rows, composite=composite(rows), reasoning=None, tax=None)


def test_the_safest_is_named_and_differences_are_paired_by_prompt() -> None:
    grouped = replace(card(3), groups={f"p{n}": f"g{n // 3}" for n in range(NUM)})
    compared = compare_scorecards(["firm", "mild"], [grouped, card(30, first=1)])
    said = compared.verdict
    assert said.sentence.startswith("firm has the fewest unsafe answers (5.0 %), fewer than each of the others")
    assert said.tone == "good"
    harm, refusals, total = compared.figures
    firm, mild = ([value == 1 for value in card.scores[0].values.values()] for card in compared.cards)
    assert harm.differences == (None, clustered_difference(mild, firm, [f"g{n // 3}" for n in range(NUM)]))
    assert total.rates[0] == compared.cards[0].composite.new  # type: ignore[union-attr]
    assert refusals.base is not None
    assert refusals.base.value == 0
    assert set(compared.frame()["figure"]) == {"harmful rate, a", "over-refusal, a", "safe+helpful (S)"}


def test_what_may_be_chance_is_not_decided_and_a_cost_is_no_green() -> None:
    said = compare_scorecards(["one", "two"], [card(3), card(5)]).verdict
    assert said.tone == "null"
    assert "one has the fewest unsafe answers (5.0 %), but cannot be distinguished from two" in said.sentence
    said = compare_scorecards(["one", "two"], [card(3, num_refused=30), card(40)]).verdict
    assert said.tone == "warning"
    assert any("But it refuses 50.0 points" in line for line in said.basis)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(card(1), prompts_id="x"), "were evaluated with other prompts"),
        (replace(card(1), judge_id="x"), "were evaluated with other judge"),
        (replace(card(1), against_id="x"), "another base or sampling"),
    ],
)
def test_models_that_were_evaluated_in_other_ways_are_not_compared(other: Scorecard, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare_scorecards(["one", "two"], [card(1), other])


def test_report_takes_checkpoints_and_says_what_it_cannot_take(tmp_path: Path) -> None:
    hostile = "<script>hack</script>{{ 7*7 }}"
    for name, made in (("firm", card(3)), ("mild", card(30)), (hostile, card(20))):
        write_scorecard(made, tmp_path / name.replace("/", "_") / "scorecard.json")
    places = ["firm", "mild", hostile.replace("/", "_")]
    done = run("report", *places, cwd=tmp_path)
    assert done.stdout.startswith("firm has the fewest unsafe answers (5.0 %)")
    assert "[2] +45.0" in done.stdout
    run("report", *places, "--to", "x.html", cwd=tmp_path)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "{{ 7*7 }}" in page
    compared = flipsearch.compare_checkpoints([tmp_path / place for place in places])
    for format in set(formats.FORMATS) - {"png"}:
        compared.write(tmp_path / f"y.{format}")
        assert (tmp_path / f"y.{format}").stat().st_size > 500
    assert "Safer than its base" in run("report", "firm", "--to", "firm.md", cwd=tmp_path).stdout
    assert "harmful rate" in (tmp_path / "firm.md").read_text(encoding="utf-8")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "training.json").write_text("{}")
    assert "make one: flipsearch evaluate raw" in one_line_error("report", "raw", cwd=tmp_path)
    assert "each once" in one_line_error("report", "firm", "firm/../firm", cwd=tmp_path)
    write_training(replace(RUN, control="neutral"), [], tmp_path / "mild")
    assert "mild (control: neutral)" in run("report", "firm", "mild", cwd=tmp_path).stdout


@pytest.mark.parametrize("content", [None, "{", '{"model": 3}'])
def test_a_scorecard_that_is_missing_or_torn_is_one_line(tmp_path: Path, content: str | None) -> None:
    write_scorecard(card(1), tmp_path / "one" / "scorecard.json")
    (tmp_path / "two").mkdir()
    if content:
        (tmp_path / "two" / "scorecard.json").write_text(content)
    with pytest.raises(StudyError, match=r"no scorecard (at|of this version)"):
        flipsearch.compare_checkpoints([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize(
    "place", [("values", "p0"), ("new", "rate", "value"), ("change", "high"), ("new", "coverage", "n")]
)
@pytest.mark.parametrize("figure", ["-2", "1e308", "NaN"])
def test_a_scorecard_with_an_impossible_figure_is_one_line(tmp_path: Path, place: Sequence[str], figure: str) -> None:
    for name in ("one", "two"):
        write_scorecard(card(1), tmp_path / name / "scorecard.json")
    path = tmp_path / "two" / "scorecard.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    row = content["scores"][0]
    for key in place[:-1]:
        row = row[key]
    row[place[-1]] = "FIGURE"
    path.write_text(json.dumps(content).replace('"FIGURE"', figure), encoding="utf-8")
    with pytest.raises(StudyError, match="evaluate again"):
        flipsearch.compare_checkpoints([tmp_path / "one", tmp_path / "two"])
