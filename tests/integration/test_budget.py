"""Budgets: the study stays within its tokens, ends where it ended when run again, and says why it stopped."""

from dataclasses import replace
from pathlib import Path

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.records import Prompt
from flipsearch.core.settings import make_config
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from flipsearch.searching.plan import Budget
from tests.integration.test_study import CONFIG, PROMPTS, study_of
from tests.world import GREEDY, LONG, LongJudge, LongModel, Model, RefusalJudge, library


def with_tokens(num: int | None) -> SearchConfig:
    return CONFIG.model_copy(update={"budget_tokens": num})


@pytest.mark.parametrize("num", [3500, 4000, 4500])
def test_a_study_stays_within_its_tokens(num: int) -> None:
    study = study_of(config=with_tokens(num))
    arms = [trial for trial in study.trials if trial.role == "arm"]
    assert 0 < len(arms) < 18
    assert study.winner is not None
    assert study.num_tokens <= num
    assert f"The token budget of {num:,} is spent: {len(arms)} of 18 contexts were tried." in study.notes


def test_more_tokens_buy_more_contexts() -> None:
    nums = [len(study_of(config=with_tokens(num)).trials) for num in (3500, 4000, 4500, 100_000)]
    assert nums == sorted(set(nums))
    plenty, free = study_of(config=with_tokens(100_000)), study_of()
    # Under a budget all cohorts come before the later rungs, which changes who meets whom, and nothing else.
    assert len(plenty.trials) == len(free.trials)
    assert plenty.winner is not None
    assert free.winner is not None
    assert plenty.winner.context == free.winner.context


def test_run_again_it_ends_where_it_ended(tmp_path: Path) -> None:
    config, model = with_tokens(4000), Model()
    first = study_of(tmp_path / "ledger.db", config=config)
    assert study_of(tmp_path / "ledger.db", model, config=config) == first
    assert model.generated == []


def test_a_larger_budget_continues_the_search(tmp_path: Path) -> None:
    study_of(tmp_path / "ledger.db", config=with_tokens(4000))
    assert study_of(tmp_path / "ledger.db").winner == study_of().winner


def test_tokens_that_hold_the_baseline_alone() -> None:
    study = study_of(config=with_tokens(300))
    assert study.winner is None
    assert [trial.role for trial in study.trials] == ["placebo"]
    note = next(note for note in study.notes if note.startswith("The token budget of 300 holds no context beside"))
    assert note.endswith("0 of 18 contexts were tried. Give more, or fewer --max-prompts or --num-finalists.")
    assert "No context was tried: there is no winner, and nothing to confirm." in study.notes


def test_one_context_needs_the_tokens_of_one_finalist() -> None:
    config = with_tokens(2600).model_copy(update={"num_contexts": 1, "breed": 0.5})
    alone, of_five = (study_of(config=config.model_copy(update={"num_finalists": num})) for num in (1, 5))
    assert [trial.role for trial in of_five.trials].count("arm") == 1
    assert (of_five.trials, of_five.num_tokens) == (alone.trials, alone.num_tokens)


def test_a_search_whose_contexts_are_all_pruned_computes_with_no_empty_table() -> None:
    study = study_of(config=CONFIG.model_copy(update={"num_contexts": 1, "breed": 0.5}))
    assert [trial.state for trial in study.trials if trial.role == "arm"] == ["pruned"]


def test_tokens_that_cannot_hold_the_baseline() -> None:
    with pytest.raises(
        StudyError, match=r"--budget-tokens is 59 and cannot hold the baseline, 60 answers without context"
    ):
        Budget(prepare_search(with_tokens(59), library(), PROMPTS))


def test_time_ends_the_search_and_a_later_launch_continues_it(tmp_path: Path) -> None:
    """Each rollout takes a second here: the baseline 60, the empty placebo 52, a whole context at most 52."""
    model = Model()
    config = CONFIG.model_copy(update={"time_s": 900.0})
    plan = prepare_search(config, library(), PROMPTS)
    studies = []
    for _ in range(2):
        start = len(model.generated)
        clock = lambda start=start: float(len(model.generated) - start)  # noqa: E731
        with Ledger(tmp_path / "ledger.db") as ledger:
            studies.append(run_study(plan, Runner(model, RefusalJudge(), ledger, GREEDY), Budget(plan, clock)))
    first, second = studies
    num_arms = [sum(trial.role == "arm" for trial in study.trials) for study in studies]
    assert 0 < num_arms[0] < num_arms[1]
    note = next(note for note in first.notes if note.startswith("The time of 900 s is spent: "))
    assert note.startswith(f"The time of 900 s is spent: {num_arms[0]} of 18 contexts were tried. ")
    assert first.winner is not None
    assert second.winner == study_of().winner


@pytest.mark.parametrize("num", [60_000, 80_000, 100_000])
def test_first_rungs_are_paid_for_and_leave_enough_to_finish(num: int) -> None:
    model, config = LongModel(), with_tokens(num).model_copy(update={"screen": 4})
    with Ledger("sqlite://") as ledger:
        study = run_study(prepare_search(config, library(), PROMPTS), Runner(model, LongJudge(), ledger, LONG))
    assert study.winner is not None
    assert study.num_tokens == model.num_written <= num


def test_time_counts_tokens_and_not_answers_that_are_cut_short() -> None:
    """A token takes a second here."""
    model, config = LongModel(), CONFIG.model_copy(update={"time_s": 60_000.0, "screen": 4})
    plan = prepare_search(config, library(), PROMPTS)
    with Ledger("sqlite://") as ledger:
        runner = Runner(model, LongJudge(), ledger, LONG)
        study = run_study(plan, runner, Budget(plan, lambda: float(model.num_written)))
    assert study.winner is not None
    assert model.num_written <= 1.1 * 60_000


@pytest.mark.parametrize(("text", "num"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), (1.5, 1.5)])
def test_times(text: object, num: float) -> None:
    assert make_config(SearchConfig, {"time_s": text}).time_s == num


@pytest.mark.parametrize("text", ["soon", "m", "-5m", "0", "inf", "5 days", "1e999h", "nanm"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--time is "):
        make_config(SearchConfig, {"time_s": text})


def test_where_the_worst_form_counts_a_study_stays_within_its_tokens_too(tmp_path: Path) -> None:
    def harder(prompt: Prompt) -> Prompt:
        start, _, hardness = prompt.text.rpartition(" ")
        return replace(prompt, text=f"{start} {int(hardness) + 1}", request=prompt.text)

    prompts = [replace(p, forms=(p, harder(p))) if p.kind == "harmful" else p for p in PROMPTS]
    config, model = with_tokens(6000), Model()
    study = study_of(tmp_path / "ledger.db", config=config, prompts=prompts)
    assert study.winner is not None
    assert study.num_tokens <= 6000
    assert study.winner.search.flip_rate.n == study.base_unsafe["search"].count == 40  # prompts, and not their forms
    assert study_of(tmp_path / "ledger.db", model, config=config, prompts=prompts) == study
    assert model.generated == []
