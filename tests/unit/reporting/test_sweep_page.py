"""The page, the table and the sentence of a sweep say what its trainings came to, and run nothing of what they show."""

import csv
from dataclasses import replace
from pathlib import Path

from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Context
from flipsearch.core.sweeps import Sweep, SweepGroup, SweepRun, SweptContext
from flipsearch.reporting.sweep_page import caveats, sentence, sweep_page, sweep_verdict, training_rows, write_sweep
from flipsearch.statistics.agreement import predictions
from flipsearch.statistics.intervals import paired_difference, wilson
from tests.finished_training import HOSTILE

HARM = {0: 0.9, 2: 0.7, 5: 0.5, 8: 0.3, 10: 0.1}
"""Flips of 10 -> harm after training."""


def a_context(flips: int, text: str = "Think first.") -> SweptContext:
    return SweptContext(
        identity="id",
        context=Context(f"{text} {flips}", "system"),
        name=f"=1+{flips} {HOSTILE}" if flips == 5 else f"context {flips}",
        is_placebo=flips == 0,
        flip_rate=wilson(flips, 10),
        net_flip_rate=paired_difference([True] * flips + [False] * (10 - flips), [False] * 10),
        refusal_share=wilson(flips // 2, flips),
        kinds={"refusal": flips // 2},
        delta_safety=Estimate(flips / 3, 0.0, 9.0, 10),
        critical_tokens=10,
        added_refusals=wilson(0, 10),
    )


CONTEXTS = tuple(map(a_context, HARM))


def a_run(swept: SweptContext, seed: int, method: str = "opsa", more: float = 0.0) -> SweepRun:
    harm = HARM[swept.flip_rate.count] + 0.01 * seed + more
    return SweepRun(
        "id", swept.context.context_id, method, 1.0, seed, 100, 20, 1000, harm, 0.95, 0.1, 0.0, None, None
    )  # fmt: skip


def a_sweep() -> Sweep:
    runs = [a_run(swept, seed) for swept in CONTEXTS for seed in range(3)]
    others = [a_run(swept, seed, "sft-self", 0.05 + 0.01 * seed) for swept in CONTEXTS for seed in range(3)]
    trained = [
        (swept, {run.seed: run.harm or 0.0 for run in runs if run.context_id == swept.context.context_id})
        for swept in CONTEXTS
    ]
    groups = SweepGroup("opsa", 1.0, tuple(predictions(trained))), SweepGroup("sft-self", 1.0, ())
    settings = {"seeds": 3, "predict_split": "confirm"}
    return Sweep(1, "a sweep", "pocket", CONTEXTS, (*runs, *others), groups, 30, settings, ("A note.",), {})


def test_the_sentence_names_the_best_figure_and_says_what_is_not_distinguished() -> None:
    sweep = a_sweep()
    best = sweep.groups[0].predictions[0]
    assert (best.predictor, best.spearman, best.num_contexts) == ("flip_rate", -1.0, 5)
    assert best.by_seed == (-1.0, -1.0, -1.0)
    assert "flip rate predicts harm after opsa best: Spearman -1.00" in sentence(sweep)
    assert "No other figure is distinguishably worse." in sentence(sweep)
    assert any("Few points: 5 contexts" in note for note in caveats(sweep))
    # A context without a flip has no share of refusals: that figure rests on one context less.
    assert {p.predictor: p.num_contexts for p in sweep.groups[0].predictions}["refusal_share"] == 4
    unlikely = replace(best, p_value=0.3)
    group = replace(sweep.groups[0], predictions=(unlikely, *sweep.groups[0].predictions[1:]))
    assert "nothing predicts harm after opsa beyond chance" in sentence(replace(sweep, groups=(group,)))
    assert "too few" in sentence(replace(sweep, groups=(SweepGroup("opsa", 1.0, ()),)))


def test_the_first_screen_says_where_harm_is_least_and_what_to_do_next() -> None:
    sweep = a_sweep()
    said = sweep_verdict(sweep)
    assert said.tone == "warning"  # five contexts
    assert said.basis == (
        "Least harm after opsa: 11.0 % (10–12) under context 10 (flip rate 100.0 %), from 95.0 % before the training.",
        "Under the placebo: 91.0 % (90–92), a flip rate of 0.0 %.",
    )
    supervised = [replace(run, harm=(run.harm or 0.0) - 0.1) if run.method == "sft-self" else run for run in sweep.runs]
    least = sweep_verdict(replace(sweep, runs=tuple(supervised))).basis
    assert [line.partition(":")[0] for line in least] == ["Least harm after sft-self", "Under the placebo"]
    assert [step.command for step in said.next_steps] == [""]
    partial = replace(sweep, runs=sweep.runs[1:], settings={**sweep.settings, "study": "s", "methods": ["opsa"]})
    command = "flipsearch sweep --study s --name 'a sweep'"
    assert sweep_verdict(partial).next_steps[0].command == command
    assert sweep_verdict(partial).next_steps[1].command == f"{command} --num-contexts 20"
    page = sweep_page(sweep)
    assert "What to do next" in page
    assert "A figure that predicts harm, on few contexts" in page


def test_methods_are_compared_in_pairs_by_seed() -> None:
    rows = [row for row in training_rows(a_sweep()) if row[1] == "sft-self"]
    assert len(rows) == len(CONTEXTS)
    # 5, 6 and 7 points more harm: mean 6, Student's interval over three seeds.
    assert all(row[7].startswith("+6.0 (+3.5 to +8.5)") for row in rows)
    single = replace(a_sweep(), runs=tuple(run for run in a_sweep().runs if run.seed == 0))
    assert {row[7] for row in training_rows(single) if row[1] == "sft-self"} == {"+5.0, one seed"}
    assert '<th scope="col" class="n">tax' not in sweep_page(single)  # which was not measured


def test_the_page_is_whole_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = sweep_page(a_sweep())
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<figure>") == 4  # harm by each figure
    assert page.count("<circle") >= 4 * 2 * 3 * 4
    assert "A note." in page
    write_sweep(a_sweep(), tmp_path)
    with (tmp_path / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert {row["flip_rate"] for row in rows} == {"0.0", "0.2", "0.5", "0.8", "1.0"}
    assert any(row["context"].startswith("'=1+5") for row in rows)
    named = replace(a_sweep(), contexts=tuple(replace(swept, name="a\x1b[2J\u202eb") for swept in CONTEXTS))
    write_sweep(named, tmp_path)
    assert "a\ufffd[2J\ufffdb" in (tmp_path / "sweep.csv").read_text(encoding="utf-8")
