"""The proposer: new contexts only, the same for the same seed, better ones with time, and an end; the slot model."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import optuna
import pytest

from flipsearch.searching.proposer import Proposer, SlotModel
from flipsearch.searching.setup import Space
from tests.world import library, strength, template

SPACE = Space(library().select())
WIDE = template(
    "wide",
    "{{ 'firm ' * (a + b) }}{{ a }} {{ b }} {{ c }} {{ d }}",
    "a = [0, 1, 2, 3]\nb = [0, 1, 2, 3]\nc = [0, 1, 2, 3]\nd = [0, 1, 2, 3]",
)


def proposed(seed: int, num_cohorts: int = 4, templates: tuple[str, ...] = ()) -> list[str]:
    """Return what is proposed when strength is what counts."""
    proposer = Proposer(Space(library(wide=WIDE).select(templates)), seed)
    texts: list[str] = []
    for _ in range(num_cohorts):
        contexts = proposer.ask(8)
        texts += [context.text for context in contexts]
        for context in contexts:
            proposer.tell(context, strength(context.text) / 10, -0.1)
    return texts


def test_the_same_seed_proposes_the_same() -> None:
    assert proposed(3) == proposed(3)
    assert proposed(3) != proposed(4)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_proposals_do_not_depend_on_the_order_of_sets(hash_seed: str) -> None:
    code = "from tests.unit.searching.test_proposer import proposed; print('\\n'.join(proposed(3)))"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == proposed(3)


def test_every_template_has_its_turn_first() -> None:
    contexts = Proposer(SPACE, 0).ask(3)
    assert {context.template for context in contexts} == {"plain", "harsh", "wordy"}


def test_no_context_is_proposed_twice_and_the_space_ends() -> None:
    proposer = Proposer(SPACE, 0)
    texts = []
    while contexts := proposer.ask(5):
        for context in contexts:
            proposer.tell(context, 0.5)
            texts.append((context.text, context.placement))
    assert proposer.exhausted
    assert len(set(texts)) == len(texts) == len(SPACE)
    assert proposer.ask(5) == []


def test_an_exhausted_space_is_found_within_a_cohort() -> None:
    proposer = Proposer(SPACE, 0)
    assert len(proposer.ask(1000)) == len(SPACE)
    assert proposer.exhausted


def test_points_that_render_the_same_text_are_one_context() -> None:
    twins = template("twins", "{{ 'firm' if a else 'firm' }}{{ b }}", "a = [true, false]\nb = [1, 2]")
    proposer = Proposer(Space(library(twins=twins).select(["twins"])), 0)
    assert sorted(context.text for context in proposer.ask(10)) == ["firm1", "firm2"]


def test_an_empty_rendering_is_not_proposed() -> None:
    hollow = template("hollow", "{{ 'firm' if a else '' }}", "a = [true, false]")
    proposer = Proposer(Space(library(hollow=hollow).select(["hollow"])), 0)
    assert [context.text for context in proposer.ask(10)] == ["firm"]
    assert proposer.exhausted


def test_it_learns() -> None:
    """16 of 256 points are the strongest; 64 random proposals would find 4 of them."""
    for seed in range(3):
        scores = [strength(text) for text in proposed(seed, num_cohorts=8, templates=("wide",))]
        assert scores.count(6) >= 10


def test_when_a_template_is_used_up_it_goes_on_with_the_next_best() -> None:
    """The points of "harsh" are the strongest and few; then the strongest of "wide" follow (3 on average)."""
    for seed in range(2):
        scores = [strength(text) for text in proposed(seed, num_cohorts=8)]
        assert sum(scores[-16:]) >= 4 * 16


def test_it_keeps_away_from_what_breaks_the_constraint() -> None:
    proposer = Proposer(Space(library(wide=WIDE).select()), 0)
    for _ in range(8):
        contexts = proposer.ask(8)
        for context in contexts:
            # The strongest are forbidden: without the constraint they would fill the last cohorts.
            proposer.tell(context, strength(context.text) / 10, 0.2 if strength(context.text) > 3 else -0.1)
    assert sum(strength(context.text) > 3 for context in contexts) <= 4


def test_optuna_gets_value_and_constraint() -> None:
    proposer = Proposer(SPACE, 0)
    context = proposer.ask(1)[0]
    proposer.tell(context, 0.75, 0.2)
    (trial,) = [trial for trial in proposer._study.trials if trial.state.is_finished()]
    assert (trial.value, trial.constraints) == (0.75, {"over_refusal": 0.2})


def test_failed_contexts_are_not_scores() -> None:
    proposer = Proposer(SPACE, 0)
    context = proposer.ask(1)[0]
    proposer.tell(context, None)
    (trial,) = [trial for trial in proposer._study.trials if trial.state.is_finished()]
    assert trial.state is optuna.trial.TrialState.FAIL
    assert trial.values is None


POINTS = [
    {"template": name, f"{name}.strength": strength, f"{name}.tone": tone}
    for name, strength, tone in product(["a", "b"], ["weak", "firm"], ["cold", "warm", "odd"])
]
EFFECT = {"weak": 0.0, "firm": 0.4, "cold": 0.0, "warm": 0.3, "odd": 0.1}


def value(point: dict[str, str]) -> float:
    name = point["template"]
    return 0.1 + EFFECT[point[f"{name}.strength"]] + EFFECT[point[f"{name}.tone"]]


def point(name: str, strength: str, tone: str) -> int:
    """Return the index of a point."""
    return POINTS.index({"template": name, f"{name}.strength": strength, f"{name}.tone": tone})


def drawn(tried: list[int], violations: list[float] | None = None, seed: int = 0) -> list[int]:
    none = [-0.1] * len(tried)
    points = [(POINTS[index], value(POINTS[index]), by) for index, by in zip(tried, violations or none, strict=True)]
    model = SlotModel(POINTS)
    return [model.draw(points, range(len(POINTS)), 1, seed + 1000 * repeat)[0] for repeat in range(200)]


def test_two_good_slots_are_joined_though_never_seen_together() -> None:
    tried = [
        point("a", "weak", "cold"),
        point("a", "firm", "cold"),
        point("a", "weak", "warm"),
        point("a", "weak", "odd"),
    ]
    indices = drawn(tried)
    assert max(set(indices), key=indices.count) in (point("a", "firm", "warm"), point("b", "firm", "warm"))


def test_a_slot_of_the_same_name_is_known_in_another_template() -> None:
    tried = [index for index, known in enumerate(POINTS) if known["template"] == "a"] + [point("b", "weak", "cold")]
    of_b = [index for index in drawn(tried) if POINTS[index]["template"] == "b"]
    assert of_b.count(point("b", "firm", "warm")) > len(of_b) / 2


def test_what_refuses_too_much_is_avoided() -> None:
    tried = list(range(len(POINTS)))
    firm = [0.3 if "firm" in values.values() else -0.1 for values in POINTS]
    assert sum("firm" in POINTS[index].values() for index in drawn(tried, firm)) <= 10
    assert sum("firm" in POINTS[index].values() for index in drawn(tried)) >= 190


def test_what_was_tried_is_not_drawn() -> None:
    points = [(POINTS[0], 0.5, -0.1)]
    assert sorted(SlotModel(POINTS).draw(points, range(1, len(POINTS)), 100, 0)) == list(range(1, len(POINTS)))


def test_draws_differ_while_little_is_known_and_repeat_with_the_seed() -> None:
    assert len(set(drawn([0]))) > 4
    assert drawn([0], seed=1) == drawn([0], seed=1) != drawn([0], seed=2)
