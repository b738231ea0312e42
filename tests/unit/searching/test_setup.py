"""The setup: what is refused before any model is loaded, and the space, which has every point once."""

from dataclasses import replace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.config import SearchConfig
from flipsearch.core.errors import ConfigError, PluginError, StudyError
from flipsearch.searching.setup import Space, prepare_search, without_same_placements
from flipsearch.templating.template import parse_template
from tests.world import benign, harmful, library, prompt_set, template

PROMPTS = prompt_set(6, 4)
LIBRARY = library()
SPACE = Space(LIBRARY.select())


def test_prompts_go_to_their_split_in_the_given_order() -> None:
    setup = prepare_search(SearchConfig(), library(), PROMPTS)
    assert list(setup.search) == [prompt for prompt in PROMPTS if prompt.split == "search"]
    assert list(setup.confirm) == [prompt for prompt in PROMPTS if prompt.split == "confirm"]


def test_max_prompts_takes_a_prefix_of_each_kind() -> None:
    setup = prepare_search(SearchConfig(max_prompts=2), library(), PROMPTS)
    searched = [prompt for prompt in PROMPTS if prompt.split == "search"]
    for kind in ("harmful", "benign"):
        of_kind = [prompt for prompt in searched if prompt.kind == kind]
        assert [prompt for prompt in setup.search if prompt.kind == kind] == of_kind[:2]


@pytest.mark.parametrize("split", ["search", "confirm"])
def test_a_split_without_harmful_prompts(split: str) -> None:
    prompts = [prompt for prompt in PROMPTS if prompt.split != split] + [benign(99, 1)]
    with pytest.raises(StudyError, match=f"no harmful prompt in the {split} split"):
        prepare_search(SearchConfig(), library(), prompts)


def test_a_prompt_in_both_splits() -> None:
    leaked = replace(harmful(0, 0), split="confirm")
    with pytest.raises(StudyError, match="1 prompts are both in search and in confirm"):
        prepare_search(SearchConfig(), library(), [*PROMPTS, leaked])


def test_unknown_template_and_impossible_placement() -> None:
    with pytest.raises(PluginError, match=r"unknown context template 'plane'\. Did you mean plain"):
        prepare_search(SearchConfig(templates=("plane",)), library(), PROMPTS)
    with pytest.raises(ConfigError, match="no template goes to around"):
        prepare_search(SearchConfig(placements=("around",)), library(), PROMPTS)


def test_every_point_is_there_once() -> None:
    points = [SPACE.point(index) for index in range(len(SPACE))]
    assert len({frozenset(point.items()) for point in points}) == len(points) == 4 * 2 + 3 * 3 + 2 * 3
    with pytest.raises(IndexError):
        SPACE.point(len(SPACE))


@given(st.integers(0, len(SPACE) - 1))
def test_optuna_and_the_index_mean_the_same(index: int) -> None:
    point = SPACE.point(index)
    trial = optuna.trial.FixedTrial(point)
    assert SPACE.suggest(trial) == SPACE.context(point)  # type: ignore[arg-type]
    assert trial.params == point


def test_parameters_belong_to_their_template() -> None:
    point = {"template": "harsh", "harsh.placement": "system", "harsh.times": 2, "harsh.edge": 1}
    context = SPACE.context(point)
    assert context.text == "firm firm blunt now"
    assert context.params == (("edge", 1), ("times", 2))


def test_placements_narrow_the_space() -> None:
    space = Space(LIBRARY.select(), ["before"])
    assert space.names == ["plain"]
    assert {space.context(space.point(index)).placement for index in range(len(space))} == {"before"}


def test_nothing_left_to_search() -> None:
    with pytest.raises(ConfigError, match="no template goes to around"):
        Space(LIBRARY.select(), ["around"])


def test_a_template_that_needs_a_text_cannot_be_searched() -> None:
    with pytest.raises(ConfigError, match="'shuffled' needs a text 'text'"):
        Space(LIBRARY.select(["shuffled"]))


def test_a_parameter_with_the_reserved_name() -> None:
    source = template("odd", "{{ placement }}", 'placement = ["here"]')
    with pytest.raises(ConfigError, match=r"odd\.j2: the parameter 'placement'"):
        Space([parse_template(source, "odd", "odd.j2")])


def test_placements_that_are_the_same_to_a_model_are_one_point() -> None:
    setup = prepare_search(SearchConfig(), library(), PROMPTS)
    assert without_same_placements(setup, {}) == (setup, [])
    smaller, (note,) = without_same_placements(setup, {"system": "before"})
    assert "'system' is the same tokens as 'before'" in note
    placed = {
        (context.template, context.placement)
        for index in range(len(smaller.space))
        if (context := smaller.space.context(smaller.space.point(index)))
    }
    both = {name for name, placement in placed if placement == "before"}
    assert not both & {name for name, placement in placed if placement == "system"}
    assert len(setup.space) == len(SPACE) > len(smaller.space)
