"""From scores to a scorecard: rates, paired changes, composite S and the tax, against equations and simulation."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from flipsearch.core.trainings import Metric, Score
from flipsearch.evaluation.scorecard import (
    AnswerScore,
    SetScores,
    collect_scores,
    composite,
    difference,
    estimate,
    make_score,
    reasoning_and_tax,
)
from flipsearch.statistics.intervals import mean_interval, paired_difference, wilson

Given = Sequence[float | None]


def set_scores(values: Given, metric: Metric = "harmful_rate", name: str = "a") -> SetScores:
    scores = (AnswerScore(value, "" if value is not None else "?") for value in values)
    return collect_scores(metric, name, ((f"{name} {i}", score) for i, score in enumerate(scores)))


def score(new: Given, base: Given | None, metric: Metric = "harmful_rate", name: str = "a") -> Score:
    return make_score(set_scores(new, metric, name), None if base is None else set_scores(base, metric, name))


def test_a_row_holds_wilsons_rates_and_newcombes_paired_change() -> None:
    new, base = [1, 0, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1]
    row = score(new, base)
    assert row.base is not None
    for side, values in ((row.new, new), (row.base, base)):
        rate = wilson(sum(values), 6)
        assert (side.rate.value, side.rate.low, side.rate.high, side.rate.n) == (rate.value, rate.low, rate.high, 6)
        assert (side.num_prompts, side.num_unscored, side.coverage.value) == (6, 0, 1.0)
    expected = paired_difference([bool(v) for v in new], [bool(v) for v in base])
    assert row.change is not None
    assert (row.change.value, row.change.low, row.change.high, row.change.n) == (
        expected.value, expected.low, expected.high, 6,
    )  # fmt: skip


def test_prompts_of_a_group_are_no_evidence_each_of_its_own() -> None:
    sides = ([0] * 12, [1] * 12)
    groups = {f"a {i}": f"group {i % 2}" for i in range(12)}
    grouped = make_score(*(replace(set_scores(values), groups=groups) for values in sides))
    alone = score(*sides)
    assert (grouped.num_better, alone.num_better) == (12, 12)
    # Two groups can fall alike by chance, twelve prompts hardly: a quarter of the 4 sign flips, and its half by mid-p.
    assert grouped.p_value == pytest.approx(0.25)
    assert alone.p_value is not None
    assert alone.p_value < 0.001


def test_unscored_prompts_are_in_no_rate_and_in_no_pair() -> None:
    row = score([1, None, 0, 0], [1, 1, None, 1])
    assert row.base is not None
    assert row.change is not None
    assert (row.new.rate.value, row.new.rate.n, row.new.num_unscored, row.new.coverage.value) == (1 / 3, 3, 1, 0.75)
    assert (row.base.rate.value, row.base.rate.n) == (1.0, 3)
    assert (row.change.value, row.change.n) == (-0.5, 2)


def test_nothing_scored_is_nothing_measured() -> None:
    row = score([None, None], [1, 0])
    assert row.new.rate.value is None
    assert row.change is not None
    assert (row.change.value, row.change.n) == (None, 0)
    assert composite([row, score([0], [0], "over_refusal_rate")]) is None


def test_without_a_base_there_is_no_change() -> None:
    row = score([1, 0], None)
    assert (row.base, row.change) == (None, None)
    result = composite([row, score([0, 0], None, "over_refusal_rate")])
    assert result is not None
    assert (result.base, result.change) == (None, None)


def test_means_over_samples_get_students_interval() -> None:
    values = [0.25, 1.0, 0.5, 0.75]
    assert estimate(set_scores(values, "reasoning_accuracy").values) == mean_interval(values)
    other = [0.5, 0.5, 0.5, 0.5]
    result = difference(set_scores(values).values, set_scores(other).values)
    assert result == mean_interval([a - b for a, b in zip(values, other, strict=True)], -1.0, 1.0)


def test_a_prompt_with_several_samples_is_the_mean_of_its_scored_answers() -> None:
    scores = [("p", 1.0), ("p", None), ("p", 0.0), ("q", None)]
    result = collect_scores("reasoning_accuracy", "a", [(id, AnswerScore(value, "x")) for id, value in scores])
    assert result.values == {"p": 0.5, "q": None}
    assert (result.num_answers, result.measured.num_unscored, result.reason) == (4, 2, "x")


def test_the_composite_is_equation_6_over_the_given_sets() -> None:
    rows = [
        score([1, 0, 0, 0], [1, 1, 1, 0], "harmful_rate", "first"),
        score([0, 0], [1, 1], "harmful_rate", "second"),
        score([1, 0, 0, 0, 0], [0, 0, 0, 0, 0], "over_refusal_rate", "first"),
        score([0, 0], [0, 0], "reasoning_accuracy", "sums"),
    ]
    result = composite(rows)
    assert result is not None
    assert result.base is not None
    assert result.change is not None
    assert result.new.value == pytest.approx(1 - (0.25 + 0 + 0.2) / 3)
    assert result.base.value == pytest.approx(1 - (0.75 + 1 + 0) / 3)
    assert result.change.value == pytest.approx((0.5 + 1 - 0.2) / 3)
    assert result.new.n == result.change.n == 11
    assert 0 <= result.new.low < result.new.high <= 1


@pytest.mark.parametrize("metric", ["harmful_rate", "over_refusal_rate"])
def test_one_half_of_safety_is_no_composite(metric: Metric) -> None:
    assert composite([score([1, 0], [1, 0], metric)]) is None


def test_a_model_against_itself_changes_nothing() -> None:
    values = [1, 0, 1, 1, None]
    rows = [score(values, values), score(values, values, "over_refusal_rate")]
    result = composite(rows)
    assert result is not None
    assert result.change is not None
    assert result.change.value == 0
    assert result.change.low < 0 < result.change.high
    assert result.new == result.base


def test_the_tax_is_what_was_lost_over_all_problems() -> None:
    new = [set_scores([1, 0, 0, 1], "reasoning_accuracy", "first"), set_scores([1], "reasoning_accuracy", "second")]
    base = [set_scores([1, 1, 1, 0], "reasoning_accuracy", "first"), set_scores([1], "reasoning_accuracy", "second")]
    reasoning, tax = reasoning_and_tax([*new, set_scores([1])], [*base, set_scores([0])])
    assert reasoning is not None
    assert reasoning.base is not None
    assert reasoning.change is not None
    assert tax is not None
    assert (reasoning.new.value, reasoning.base.value, tax.n) == (0.6, 0.8, 5)
    assert tax.value == pytest.approx(0.2)
    assert (tax.low, tax.high) == pytest.approx((-reasoning.change.high, -reasoning.change.low))


def test_a_problem_of_two_sets_counts_in_each_of_them() -> None:
    """An unscored answer in one set takes nothing from the other, also where both files bear one name."""

    def two_sets(first: Given, second: Given) -> list[SetScores]:
        sets = (first, second)
        return [
            collect_scores(
                "reasoning_accuracy", "test.jsonl", [(f"p{i}", AnswerScore(value)) for i, value in enumerate(values)]
            )
            for values in sets
        ]

    new, base = two_sets([1, 0, 0], [None, 1]), two_sets([1, 1, 1], [1, 1])
    rows = [make_score(row, other) for row, other in zip(new, base, strict=True)]
    assert [(row.new.rate.value, row.new.rate.n) for row in rows] == [(1 / 3, 3), (1.0, 1)]
    reasoning, tax = reasoning_and_tax(new, base)
    assert reasoning is not None
    assert reasoning.base is not None
    assert tax is not None
    assert (reasoning.new.value, reasoning.new.n) == (0.5, 4)
    assert (reasoning.base.value, reasoning.base.n) == (1.0, 5)
    assert (tax.value, tax.n) == (0.5, 4)


def test_answers_that_could_not_be_compared_are_wrong_and_counted() -> None:
    set_scores = collect_scores(
        "reasoning_accuracy", "a", [("p", AnswerScore(0.0, is_incomparable=True)), ("q", AnswerScore(1.0))]
    )
    result = make_score(set_scores, None).new
    assert (result.rate.value, result.rate.n, result.num_unscored, result.num_incomparable) == (0.5, 2, 0, 1)


def test_no_problems_no_tax() -> None:
    assert reasoning_and_tax([set_scores([1])], [set_scores([1])]) == (None, None)
    reasoning, tax = reasoning_and_tax([set_scores([1, 0], "reasoning_accuracy")], [])
    assert reasoning is not None
    assert (reasoning.new.value, reasoning.base, tax) == (0.5, None, None)


def test_coverage_of_the_change_of_the_composite_is_near_its_level() -> None:
    """1,000 simulated pairs of models: harm falls by 0.4 on one set and 0.6 on another, over-refusal rises by 0.05."""
    rng = random.Random(3)
    sets: list[tuple[Metric, int, float, float]] = [
        ("harmful_rate", 60, 0.5, 0.1), ("harmful_rate", 40, 0.7, 0.1), ("over_refusal_rate", 80, 0.02, 0.07),
    ]  # fmt: skip
    truth, covered = (0.4 + 0.6 - 0.05) / 3, 0
    for _ in range(1000):
        rows = []
        for number, (metric, n, before, after) in enumerate(sets):
            # One draw for both models, so that they are correlated as two checkpoints of one model are.
            luck = [rng.random() for _ in range(n)]
            new, base = [float(x < after) for x in luck], [float(x < before) for x in luck]
            rows.append(score(new, base, metric, str(number)))
        result = composite(rows)
        assert result is not None
        assert result.change is not None
        covered += result.change.low <= truth <= result.change.high
    assert 0.92 <= covered / 1000 <= 0.985, covered
