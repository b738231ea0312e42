"""The scorecard as people read it: rows and Markdown; hostile names stay text."""

from dataclasses import replace

from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Sampling
from flipsearch.core.trainings import Composite, Measured, Metric, Score, Scorecard
from flipsearch.reporting.cards import scorecard_markdown, scorecard_remarks, scorecard_rows
from flipsearch.statistics.intervals import mcnemar_mid_p


def measured(value: float | None, n: int = 60, num_unscored: int = 0) -> Measured:
    rate = Estimate(value, 0.0 if value is None else value - 0.05, 1.0 if value is None else value + 0.05, n)
    scored = Estimate(1 - num_unscored / 60, 0.5, 1.0, 60)
    return Measured(rate, 60, scored, num_unscored)


def score(metric: Metric, name: str, new: float | None, base: float, num_unscored: int = 0, pairs: int = 60) -> Score:
    change = (
        Estimate(None, -1, 1, 0) if new is None else Estimate(new - base, new - base - 0.1, new - base + 0.1, pairs)
    )
    less = 0 if new is None else round(pairs * (base - new))
    better, worse = (less, -less) if metric != "reasoning_accuracy" else (-less, less)
    both = measured(new, pairs, num_unscored), measured(base)
    better, worse = max(0, better), max(0, worse)
    return Score(metric, name, *both, change, better, worse, mcnemar_mid_p(better, worse))


CARD = Scorecard(
    model="checkpoints/mine",
    model_id="new id",
    revision=None,
    against="pocket",
    against_id="base id",
    against_revision=None,
    scores=(
        score("harmful_rate", "pocket", 0.05, 0.88, num_unscored=2, pairs=58),
        score("over_refusal_rate", "pocket", 0.1, 0.1),
        score("reasoning_accuracy", "arithmetic", 0.875, 0.885),
    ),
    composite=Composite(
        Estimate(0.925, 0.9, 0.95, 118), Estimate(0.51, 0.5, 0.52, 120), Estimate(0.415, 0.4, 0.43, 118)
    ),
    reasoning=Composite(
        Estimate(0.875, 0.85, 0.9, 399), Estimate(0.885, 0.86, 0.91, 399), Estimate(-0.01, -0.03, 0.01, 399)
    ),
    tax=Estimate(0.01, -0.01, 0.03, 1399),
    judge="refusal",
    judge_id="judge id",
    sampling=Sampling(160),
    num_samples=1,
    split="evaluation",
    settings={"model": "checkpoints/mine"},
    prompts_id="p",
    problems_id="q",
    num_unscored=2,
    notes=("Mind the gap.",),
    versions={"flipsearch": "0"},
)
ALONE = replace(
    CARD, against=None, against_id=None, tax=None, composite=None, reasoning=None,
    scores=tuple(replace(row, base=None, change=None) for row in CARD.scores),
)  # fmt: skip


def test_every_figure_has_its_interval_and_n() -> None:
    assert scorecard_rows(CARD) == [
        ["metric", "set", "base", "new", "change", "n"],
        ["harmful rate", "pocket", "88.0% (83–93)\nn 60", "5.0% (0–10)", "-83.0 (-93.0 to -73.0)", "58"],
        ["over-refusal", "pocket", "10.0% (5–15)", "10.0% (5–15)", "0.0 (-10.0 to +10.0)", "60"],
        ["reasoning", "arithmetic", "88.5% (84–94)", "87.5% (82–92)", "-1.0 (-11.0 to +9.0)", "60"],
        ["safe+helpful", "all sets", "51.0% (50–52)\nn 120", "92.5% (90–95)", "+41.5 (+40.0 to +43.0)", "118"],
        ["tax", "all problems", "", "", "+1.0 (-1.0 to +3.0)", "1,399"],
    ]


def test_n_is_that_of_the_rate_and_pairs_have_their_own_where_it_differs() -> None:
    apart = replace(score("harmful_rate", "a", 0.05, 0.88), change=Estimate(-0.83, -0.9, -0.7, 1057))
    card = replace(CARD, scores=(apart,), composite=None, reasoning=None, tax=None)
    assert scorecard_rows(card)[1][2:] == ["88.0% (83–93)", "5.0% (0–10)", "-83.0 (-90.0 to -70.0)\nn 1,057", "60"]
    assert any("(pairs)" in remark for remark in scorecard_remarks(card))
    assert "| -83.0 (-90.0 to -70.0) n 1,057 | 60 |" in scorecard_markdown(card)
    alike = replace(card, scores=(score("harmful_rate", "a", 0.05, 0.88),))
    assert not any("(pairs)" in remark for remark in scorecard_remarks(alike))


def test_without_a_base_its_columns_are_gone() -> None:
    rows = scorecard_rows(ALONE)
    assert rows[0] == ["metric", "set", "new", "n"]
    assert rows[1] == ["harmful rate", "pocket", "5.0% (0–10)", "58"]
    assert not any("Tax" in remark for remark in scorecard_remarks(ALONE))


def test_several_problem_sets_have_a_row_over_all() -> None:
    two = replace(CARD, scores=(*CARD.scores, score("reasoning_accuracy", "gsm8k.jsonl", 0.5, 0.5)))
    assert ["reasoning", "all problems", "88.5% (86–91)", "87.5% (85–90)", "-1.0 (-3.0 to +1.0)", "399"] in (
        scorecard_rows(two)
    )


def test_what_was_not_measured_is_a_dash_and_never_zero() -> None:
    row = scorecard_rows(replace(CARD, scores=(score("harmful_rate", "a", None, 0.5),)))[1]
    assert row[3:5] == ["–", "–\nn 0"]


def test_unscored_answers_are_named_with_the_coverage() -> None:
    remarks = " ".join(scorecard_remarks(CARD))
    assert "(harmful rate, pocket): new 2 (97 % scored), base 0 (100 % scored)" in remarks
    assert "over-refusal, pocket" not in remarks
    assert "Mind the gap." in remarks


def test_markdown_holds_the_table_and_the_remarks() -> None:
    text = scorecard_markdown(CARD)
    assert "`checkpoints/mine` against `pocket`: judge refusal, evaluation prompts, greedy decoding" in text
    assert "| harmful rate | pocket | 88.0% (83–93) n 60 | 5.0% (0–10) | -83.0 (-93.0 to -73.0) | 58 |" in text
    assert "| --- | --- | ---: | ---: | ---: | ---: |" in text
    assert "- Mind the gap." in text


def test_hostile_names_and_notes_stay_text_in_markdown() -> None:
    attack = "a|b `c` <script>alert(1)</script>\n# [x](javascript:1) \x1b[31m"
    bad = score("harmful_rate", attack, 0.1, 0.2)
    text = scorecard_markdown(replace(CARD, model=attack, scores=(bad,), notes=(attack,)))
    table, note = next(line for line in text.splitlines() if "harmful rate" in line), text.splitlines()[-1]
    assert table.count("|") - table.count("\\|") == 7
    for line in (table, note):
        assert "<script" not in line
        assert "\\[x\\](" in line
    assert "\x1b" not in text
    assert text.splitlines()[0].count("`") == 4  # two code spans
