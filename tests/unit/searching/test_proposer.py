"""The proposer: new contexts only, the same for the same seed, better ones with time, and an end."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from flipsearch.searching.proposals import Proposer
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
