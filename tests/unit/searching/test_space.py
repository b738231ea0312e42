"""The space: every point once, conditional parameters, and what cannot be searched."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import ConfigError
from flipsearch.searching.space import Space
from flipsearch.templating.template import parse_template
from tests.world import library, template

LIBRARY = library()
SPACE = Space(LIBRARY.select())


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


def test_a_template_that_waits_for_a_text_cannot_be_searched() -> None:
    with pytest.raises(ConfigError, match="'shuffled' needs a text 'text'"):
        Space(LIBRARY.select(["shuffled"]))


def test_a_parameter_named_like_the_place() -> None:
    source = template("odd", "{{ placement }}", 'placement = ["here"]')
    with pytest.raises(ConfigError, match=r"odd\.j2: the parameter 'placement'"):
        Space([parse_template(source, "odd", "odd.j2")])
