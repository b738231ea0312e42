"""The plan: what is refused before any model is loaded."""

from dataclasses import replace

import pytest

from flipsearch.config import StudyConfig
from flipsearch.core.errors import ConfigError, PluginError, StudyError
from flipsearch.searching.setup import prepare_search
from tests.world import benign, harmful, library, prompt_set

PROMPTS = prompt_set(6, 4)


def test_prompts_go_to_their_split_in_the_given_order() -> None:
    plan = prepare_search(StudyConfig(), library(), PROMPTS)
    assert list(plan.search) == [prompt for prompt in PROMPTS if prompt.split == "search"]
    assert list(plan.confirm) == [prompt for prompt in PROMPTS if prompt.split == "confirm"]


def test_max_prompts_takes_a_prefix_of_each_kind() -> None:
    plan = prepare_search(StudyConfig(max_prompts=2), library(), PROMPTS)
    searched = [prompt for prompt in PROMPTS if prompt.split == "search"]
    for kind in ("harmful", "benign"):
        of_kind = [prompt for prompt in searched if prompt.kind == kind]
        assert [prompt for prompt in plan.search if prompt.kind == kind] == of_kind[:2]


@pytest.mark.parametrize("split", ["search", "confirm"])
def test_a_side_without_harmful_prompts(split: str) -> None:
    prompts = [prompt for prompt in PROMPTS if prompt.split != split] + [benign(99, 1)]
    with pytest.raises(StudyError, match=f"no harmful prompt in the {split} split"):
        prepare_search(StudyConfig(), library(), prompts)


def test_a_prompt_on_both_sides() -> None:
    leaked = replace(harmful(0, 0), split="confirm")
    with pytest.raises(StudyError, match="1 prompts are both in search and in confirm"):
        prepare_search(StudyConfig(), library(), [*PROMPTS, leaked])


def test_unknown_template_and_impossible_placement() -> None:
    with pytest.raises(PluginError, match=r"unknown context template 'plane'\. Did you mean plain"):
        prepare_search(StudyConfig(templates=("plane",)), library(), PROMPTS)
    with pytest.raises(ConfigError, match="no template goes to around"):
        prepare_search(StudyConfig(placements=("around",)), library(), PROMPTS)
