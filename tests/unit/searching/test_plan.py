"""The plan of a search: its ranges hold what the search takes."""

import json
from typing import Any

import pytest

from flipsearch.commands.plans import plan_lines
from flipsearch.config import SearchConfig
from flipsearch.core.errors import ConfigError
from flipsearch.searching.plan import SearchPlan, Span, plan_search
from flipsearch.searching.setup import prepare_search
from tests.integration.test_study import CONFIG, study_of
from tests.world import library, prompt_set


def plan_of(config: SearchConfig = CONFIG, **more: Any) -> SearchPlan:
    return plan_search(prepare_search(config, library(), prompt_set()), **more)


def test_every_phase_by_hand() -> None:
    """40 + 20 prompts per split, 3 placebos, 18 contexts, 3 finalists."""
    plan = plan_of()
    assert plan.prompts == {"search": {"harmful": 40, "benign": 20}, "confirm": {"harmful": 40, "benign": 20}}
    assert plan.rollouts["baseline"] == Span(60, 60)
    assert plan.rollouts["race"].most == 18 * 60
    assert plan.rollouts["placebos"].most == 3 * 60
    assert plan.rollouts["confirm"] == Span(5 * 60, 7 * 60)
    assert plan.rollouts["depth"] == Span(0, 3 * 3 * 40)
    assert plan.rollouts["benign context"] == Span(0, 0)  # this world has no template for it
    assert plan.total.most == 60 + 18 * 60 + 3 * 60 + 7 * 60 + 3 * 3 * 40
    assert plan.tokens_at_most == plan.total.most * 1024


@pytest.mark.parametrize("changes", [{}, {"num_contexts": 3}, {"num_finalists": 1}, {"first_rung": 2}])
def test_a_study_takes_what_was_planned(changes: dict[str, int]) -> None:
    config = CONFIG.model_copy(update=changes)
    study, total = study_of(config=config), plan_of(config).total
    assert total.least <= study.num_rollouts <= total.most
    expected = plan_of(config, mean_length=study.num_tokens / study.num_rollouts).tokens_expected
    assert expected is not None
    assert expected.least <= study.num_tokens <= expected.most


def test_a_study_without_benign_prompts_is_planned() -> None:
    harmful = prompt_set(num_benign=0)
    plan = plan_search(prepare_search(CONFIG, library(), harmful))
    assert plan.prompts["search"] == {"harmful": 40, "benign": 0}
    assert "search 40 + 0, confirm 40 + 0" in "\n".join(plan_lines(plan))


def test_a_small_space_ends_the_search() -> None:
    assert plan_of(SearchConfig(num_contexts=500, breed=0)).num_contexts < 500
    assert plan_of(SearchConfig(num_contexts=500)).num_contexts == 500


def test_what_the_confirm_split_can_detect() -> None:
    plan = plan_of(delta=0.1, power=0.9).resolution
    assert (plan.num_pairs_needed, plan.discordant, plan.num_tests) == (206, 0.2, 2)
    assert [row.num_pairs for row in plan.by_unsafe_rate] == [40, 20, 8, 4, 2]
    assert 0.2 < (plan.by_unsafe_rate[0].from_placebo or 0) < (plan.by_unsafe_rate[0].from_finalist or 0) < 0.3
    assert [row.from_placebo is None for row in plan.by_unsafe_rate] == [False] * 3 + [True] * 2
    assert plan_of(delta=0.5).resolution.discordant == 0.5


def test_how_long_it_takes() -> None:
    """Without a speed the terminal shows that of a CPU, which takes days, and of a GPU."""
    real = CONFIG.model_copy(update={"model": "org/model-0.6B", "num_contexts": 64})
    plan = plan_of(real)
    assert plan.is_long
    assert "at 20 tokens per second (a few CPU cores)" in "\n".join(plan_lines(plan))
    assert any(line.startswith("Warning: on a CPU this may take days.") for line in plan_lines(plan))
    fast = plan_of(real, tokens_per_s=5000.0, mean_length=100.0)
    assert fast.seconds(5000.0) == (fast.total.least / 50, fast.total.most / 50)
    assert not fast.is_long
    assert fast.as_dict()["seconds"] == list(fast.seconds(5000.0))
    assert not any("CPU" in line for line in plan_lines(fast))
    for config in (CONFIG, real.model_copy(update={"model": "http://host/v1#m"})):
        assert not plan_of(config).is_long
    assert all(len(line) <= 80 for line in plan_lines(plan))


@pytest.mark.parametrize("settings", [{"delta": 0.0}, {"delta": 1.5}, {"power": 1.0}, {"power": 0.01}])
def test_settings_without_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} = "):
        plan_of(**settings)


def test_it_is_json() -> None:
    plan = json.loads(json.dumps(plan_of(mean_length=4.0).as_dict()))
    assert plan["rollouts"]["total"]["most"] == plan_of().total.most
    assert plan["tokens_expected"]["most"] == 4 * plan["rollouts"]["total"]["most"]
    assert plan_of().as_dict()["tokens_expected"] is None
