"""What a search is said to take holds what it takes."""

import json
from typing import Any

import pytest

from flipsearch.config import StudyConfig
from flipsearch.core.errors import ConfigError
from flipsearch.searching.plan import SearchPlan, Span, forecast
from flipsearch.searching.setup import prepare_search
from tests.integration.test_study import CONFIG, study_of
from tests.world import library, prompt_set


def forecast_of(config: StudyConfig = CONFIG, **more: Any) -> SearchPlan:
    return forecast(prepare_search(config, library(), prompt_set()), **more)


def test_every_phase_by_hand() -> None:
    """40 + 20 prompts a split, 3 placebos, 18 contexts, 3 finalists."""
    told = forecast_of()
    assert told.prompts == {"search": {"harmful": 40, "benign": 20}, "confirm": {"harmful": 40, "benign": 20}}
    assert told.rollouts["baseline"] == Span(60, 60)
    assert told.rollouts["race"].most == 18 * 60
    assert told.rollouts["placebos"].most == 3 * 60
    assert told.rollouts["confirm"] == Span(5 * 60, 7 * 60)
    assert told.rollouts["depth"] == Span(0, 3 * 3 * 40)
    assert told.rollouts["benign context"] == Span(0, 0)  # this world has no template for it
    assert told.total.most == 60 + 18 * 60 + 3 * 60 + 7 * 60 + 3 * 3 * 40
    assert told.tokens_at_most == told.total.most * 1024


@pytest.mark.parametrize("changes", [{}, {"num_contexts": 3}, {"num_finalists": 1}, {"first_rung": 2}])
def test_a_study_takes_what_was_said(changes: dict[str, int]) -> None:
    config = CONFIG.model_copy(update=changes)
    study, total = study_of(config=config), forecast_of(config).total
    assert total.least <= study.num_rollouts <= total.most
    again = forecast_of(config, mean_length=study.num_tokens / study.num_rollouts).tokens_expected
    assert again is not None
    assert again.least <= study.num_tokens <= again.most


def test_a_small_space_ends_the_search() -> None:
    assert forecast_of(StudyConfig(num_contexts=500, breed=0)).num_contexts < 500
    assert forecast_of(StudyConfig(num_contexts=500)).num_contexts == 500


def test_what_the_confirm_split_can_tell() -> None:
    told = forecast_of(delta=0.1, power=0.9).resolution
    assert (told.num_pairs, told.num_pairs_needed, told.discordant) == (40, 206, 0.2)
    assert told.detectable is not None
    assert 0.2 < told.detectable < 0.3
    assert forecast_of(delta=0.5).resolution.discordant == 0.5


@pytest.mark.parametrize("asked", [{"delta": 0.0}, {"delta": 1.5}, {"power": 1.0}, {"power": 0.01}])
def test_questions_without_sense(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(asked))} = "):
        forecast_of(**asked)


def test_it_is_json() -> None:
    told = json.loads(json.dumps(forecast_of(mean_length=4.0).as_dict()))
    assert told["rollouts"]["total"]["most"] == forecast_of().total.most
    assert told["tokens_expected"]["most"] == 4 * told["rollouts"]["total"]["most"]
    assert forecast_of().as_dict()["tokens_expected"] is None
