"""Go or no-go: which figure leads to which verdict, on the page and in the terminal."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flipsearch
from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import Difference, Estimate, Flip, Rate
from flipsearch.core.records import Label
from flipsearch.measuring.measure import summarize
from flipsearch.reporting.anatomy_page import preflight_page, preflight_verdict
from flipsearch.statistics.intervals import wilson
from flipsearch.training.cost import TrainingCost, TrainingTokens
from flipsearch.training.model import StepMemory
from flipsearch.training.preflight import PREFLIGHT_FORMAT, ContextFigures, Preflight, checks_of
from tests.finished_training import CONTEXT, HOSTILE
from tests.integration.test_cli import run
from tests.pages import words_of

COST = TrainingCost(
    "mine", 400, 1872, 64, 1e-5, 100.0, "limit", 200, TrainingTokens(0, 9, 9, 9), StepMemory(1, 1, 1, 1, 1), 10**9,
    "cpu", 1, 10**6, 1.0, 5.0, 60.0, 70.0, None, (),
)  # fmt: skip


def a_flip(number: int, kind: Any, before: Label, after: Label, *, refused: bool = False) -> Flip:
    kinds: dict[str, Any] = {"kind_after": "refusal" if after is Label.SAFE else "harm"} if kind == "harmful" else {}
    return Flip(str(number), kind, before, after, False, refused, rollout_ids=(), **kinds)


def a_preflight(num_flipped: int = 18, num_refused: int = 0, num_unsafe: int = 20) -> Preflight:
    """Of 40 harmful prompts `num_unsafe` are answered unsafely, and `num_flipped` of these safely under the context."""
    flips = [
        a_flip(i, "harmful", Label.UNSAFE if i < num_unsafe else Label.SAFE,
               Label.SAFE if i < num_flipped or i >= num_unsafe else Label.UNSAFE)
        for i in range(40)
    ] + [a_flip(100 + i, "benign", Label.SAFE, Label.SAFE, refused=i < num_refused) for i in range(40)]  # fmt: skip
    measured = summarize(flips, "all", whole=True)
    figures = ContextFigures(measured, Difference(0.5, 0.3, 0.7, 20, 0.001), ((8, wilson(19, 20)),), None)
    made = Preflight(
        PREFLIGHT_FORMAT, "mine", "id", "judge", CONTEXT, figures, 80, 0, wilson(0, 80), None, COST, (), {}, (), {}
    )
    return replace(made, checks=tuple(checks_of(made)))


def changed(change: Callable[[Preflight], Preflight]) -> Preflight:
    """The preflight whose criteria are all met, but for a change."""
    made = change(a_preflight())
    return replace(made, checks=tuple(checks_of(made)))


def of_figures(**figures: Any) -> Callable[[Preflight], Preflight]:
    return lambda made: replace(made, figures=replace(made.figures, **figures))


def of_cost(**cost: Any) -> Callable[[Preflight], Preflight]:
    return lambda made: replace(made, cost=replace(made.cost, **cost))


def test_a_context_that_meets_all_is_a_go() -> None:
    made = a_preflight()
    assert (made.verdict, made.sentence) == ("go", "Go: every criterion is met.")
    assert all(not check.todo for check in made.checks)
    assert all(check.wanted != "for comparison" for check in made.checks)
    assert "tokens in its rollouts: 9." in " ".join(preflight_verdict(made, "").basis)
    assert preflight_verdict(made, "flipsearch train --name a").next_steps[-1].command == "flipsearch train --name a"


@pytest.mark.parametrize(
    ("made", "verdict", "name"),
    [
        (a_preflight(num_unsafe=0, num_flipped=0), "no", "unsafe without the context"),
        (a_preflight(num_unsafe=1, num_flipped=1), "think again", "unsafe without the context"),
        (a_preflight(num_flipped=2), "no", "flips"),
        (a_preflight(num_flipped=9), "think again", "flips"),
        (a_preflight(num_refused=20), "no", "benign prompts refused beyond before"),
        (a_preflight(num_refused=5), "think again", "benign prompts refused beyond before"),
        (changed(of_figures(net=None)), "think again", "net of neutral text"),
        (changed(of_figures(net=Difference(-0.2, -0.3, -0.1, 20, 0.01))), "no", "net of neutral text"),
        (changed(of_figures(depth=((8, wilson(5, 20)),))), "think again", "depth"),
        (changed(of_figures(depth=())), "think again", "depth"),
        (changed(lambda made: replace(made, num_showing=1)), "no", "prompts that show the student the context"),
        (changed(lambda made: replace(made, quoted=wilson(30, 80))), "think again", "answers that quote the context"),
        (
            changed(lambda made: replace(made, teacher_mass=Estimate(0.6, 0.5, 0.7, 9))),
            "think again",
            "teacher mass compared",
        ),
        (changed(of_cost(num_steps=9)), "think again", "steps times learning rate"),
        (changed(of_cost(available=3)), "no", "memory"),
        (changed(of_cost(steps_s=1e6)), "think again", "time"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_criterion_decides_and_says_what_would_change_it(made: Preflight, verdict: str, name: str) -> None:
    unmet = {check.name: check for check in made.checks if check.state != "met"}
    assert made.verdict == verdict
    assert unmet[name].todo
    assert ("Nothing was tried" in unmet[name].todo) == (unmet[name].value == "not measured" and name == "depth")
    assert name in made.sentence
    assert unmet[name].todo in words_of(preflight_page(made, "flipsearch train"))


def test_hostile_texts_are_escaped_on_the_page() -> None:
    made = replace(a_preflight(), context=replace(CONTEXT, text=HOSTILE), notes=(HOSTILE,), model=HOSTILE)
    page = preflight_page(made, HOSTILE)
    assert "<script>" not in page
    assert "<img" not in page


def test_a_context_without_a_study_is_measured_on_a_sample(tmp_path: Path) -> None:
    text = "You must never help with harmful requests. Think about what the person wants, and who could get hurt."
    settings = ("--max-prompts", "6", "--train-batch-size", "4", "--support", "20")
    done = run(
        *("preflight", "--context", text, "--sample", "4", "--tokens-per-second", "50", *settings, "--json"),
        cwd=tmp_path,
        code=None,
    )
    printed = json.loads(done.stdout)
    assert done.code == (0 if printed["verdict"] == "go" else 1)
    assert Path(tmp_path / printed["page"]).is_file()
    assert f"--context '{text}'" in printed["command"]
    assert "--train-batch-size 4" in printed["command"]
    assert printed["figures"]["study"] is None
    assert printed["figures"]["measurement"]["transitions"]
    assert printed["figures"]["net"]["n"] <= 4
    assert 0.5 < printed["teacher_mass"]["value"] <= 1
    assert printed["cost"]["steps_s"] == pytest.approx(printed["cost"]["tokens"]["rollouts"] / 50)
    with pytest.raises(ConfigError, match="--sample is 0, expected at least 1"):
        flipsearch.preflight(context=text, sample=0)


def test_what_the_study_of_a_context_knows_is_not_measured_again(tmp_path: Path) -> None:
    searched = flipsearch.search(
        model="pocket", num_contexts=4, cohort_size=2, max_prompts=24, screen=1, num_finalists=1, study="mine",
        reports=tmp_path, best=tmp_path / "best.txt", depths=(4,),
    )  # fmt: skip
    assert searched.best
    made = flipsearch.preflight(
        context=str(tmp_path / "best.txt"), sample=2, tokens_per_second=50.0, reports=tmp_path, max_prompts=4
    ).preflight
    assert made.figures.study == "mine"
    assert made.figures.measurement.flip_rate == searched.best.final.flip_rate
    assert made.figures.net == searched.best.net
    assert isinstance(made.quoted, Rate)
