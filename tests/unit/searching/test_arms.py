"""The search over arms: early stopping, and what runs on when all break the cap."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.records import Request, Rollout, Sampling
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import run_study
from flipsearch.searching.baseline import make_rungs, measure_baseline
from flipsearch.searching.setup import prepare_search
from flipsearch.templating.library import TemplateLibrary
from tests.world import GREEDY, REFUSAL, Model, RefusalJudge, flat, library, prompt_set, template


class LateRefuser(Model):
    """Refuses the benign prompts that a race sees late, under contexts with a given word."""

    def __init__(self, late: set[str], word: str) -> None:
        super().__init__()
        self.late, self.word = late, word

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        texts = {r.context.context_id: r.context.text for r in requests if r.context}
        for rollout in flat(super().generate(requests, sampling)):
            refuses = rollout.prompt_id in self.late and self.word in texts.get(rollout.context_id or "", "")
            yield [replace(rollout, completion=REFUSAL) if refuses else rollout]


def study_with_late_refusals(word: str, library: TemplateLibrary, **settings: Any) -> Study:
    config = SearchConfig.model_validate({"num_contexts": 18, "cohort_size": 6, "breed": 0, "seed": 1, **settings})
    setup = prepare_search(config, library, prompt_set(63, 40))
    with Ledger("sqlite://") as ledger:
        base = measure_baseline(Runner(Model(), RefusalJudge(), ledger, GREEDY), setup.search, "search")
    first = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)[0]
    early = {prompt.prompt_id for prompt in base.to_flip(first)}
    late = {prompt.prompt_id for prompt in base.prompts if prompt.kind == "benign"} - early
    with Ledger("sqlite://") as ledger:
        return run_study(setup, Runner(LateRefuser(late, word), RefusalJudge(), ledger, GREEDY))


def test_all_arms_may_be_pruned_before_the_last_rung() -> None:
    study = study_with_late_refusals(" ", library())  # all of them
    assert study.winner is None
    assert {trial.state for trial in study.trials if trial.role == "arm"} <= {"pruned", "stopped"}
    assert any("no winner" in note and "pruned" in note for note in study.notes)


def test_arms_that_were_stopped_run_on_when_none_that_finished_may_win() -> None:
    """Blunt contexts flip most, and break the cap on the prompts that come late."""
    study = study_with_late_refusals("blunt", library(), num_finalists=1, max_over_refusal=0.3, alpha=0.001)
    assert study.winner is not None
    assert "blunt" not in study.winner.context.text


def test_a_budget_that_carries_few_to_the_end_leaves_one_that_breaks_the_cap_on_the_way() -> None:
    many = f"mild = {list(range(40))}"
    strong = template("strong", "blunt blunt kind kind {{ 'mild ' * mild }}", many)
    weak = template("weak", "firm firm {{ 'mild ' * mild }}", many)
    settings = {"templates": ("strong", "weak"), "num_contexts": 1000, "budget_tokens": 5_000, "max_over_refusal": 0.3}
    texts = library(strong=strong, weak=weak)
    study = study_with_late_refusals("blunt", texts, num_finalists=1, alpha=1e-9, **settings)
    assert study.winner is not None
    assert study.winner.context.template == "weak"


@pytest.mark.parametrize("cap", [0.0, 0.1])
def test_without_refusals_the_strongest_run_on_whatever_the_cap(cap: float) -> None:
    settings = {"num_finalists": 2, "max_over_refusal": cap, "num_contexts": 18, "cohort_size": 6, "breed": 0}
    setup = prepare_search(SearchConfig.model_validate(settings), library(), prompt_set(63, 40))
    with Ledger("sqlite://") as ledger:
        study = run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY))
    arms = [trial for trial in study.trials if trial.role == "arm" and not trial.search.over_refusal_rate.count]
    ended = [trial.search.flip_rate.value or 0.0 for trial in arms if trial.state == "complete"]
    stopped = [trial.search.flip_rate.value or 0.0 for trial in arms if trial.state == "stopped"]
    assert min(ended) >= max(stopped, default=0.0) - 0.1


def test_a_budget_carries_one_of_many_that_are_alike_to_the_end() -> None:
    """All flip all: whichever runs on, it must not be a part of the way each."""
    alike = template("alike", "{{ 'firm ' * 4 }}{{ 'mild ' * mild }}{{ tail }}",
                     f"mild = {list(range(40))}\ntail = [\"so\", \"thus\", \"hence\"]")  # fmt: skip
    settings = {"templates": ("alike",), "num_finalists": 1, "num_contexts": 1000, "budget_tokens": 5_000, "breed": 0}
    prompts = [*prompt_set(115, 60)[:175], *prompt_set(5, 5)[10:]]
    setup = prepare_search(SearchConfig.model_validate(settings), library(alike=alike), prompts)
    with Ledger("sqlite://") as ledger:
        study = run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY))
    assert study.winner is not None
    assert study.num_tokens <= 5_000


def test_what_was_stopped_early_is_on_record_with_its_chance_to_be_better() -> None:
    settings = {"num_finalists": 2, "num_contexts": 18, "cohort_size": 6, "breed": 0}
    setup = prepare_search(SearchConfig.model_validate(settings), library(), prompt_set(63, 40))
    events: dict[str, dict[str, Any]] = {}

    def record(event: str, /, **facts: Any) -> None:
        events[event] = facts

    with Ledger("sqlite://") as ledger:
        study = run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY, emit=record))
    stop = events["stopped_early"]
    assert set(stop["stopped"]) == {trial.context.context_id for trial in study.trials if trial.state == "stopped"}
    assert not set(stop["stopped"]) & set(stop["finished"])
    chance = stop["chance_of_better"]
    assert 0 <= chance <= SearchConfig().alpha  # so likely that it may stop
    assert any((f"about {chance:.0%}" if chance >= 0.01 else "below 1%") in note for note in study.notes)
