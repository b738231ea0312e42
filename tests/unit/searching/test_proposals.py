"""Proposals: children from the elite, new contexts from templates, the promising ones of both, and no text twice."""

from collections.abc import Iterator
from typing import Any

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Rate
from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import measure_baseline
from flipsearch.searching.proposals import Proposals, Proposer
from flipsearch.searching.screening import MIN_PREFIX_SCORED, Screen
from flipsearch.searching.setup import prepare_search
from tests.world import (
    GREEDY,
    LONG,
    LongJudge,
    LongModel,
    Model,
    RefusalJudge,
    ScoringModel,
    library,
    prompt_set,
    strength,
    template,
)

WIDE = template("wide", "{{ 'firm ' * firm }}{{ 'mild ' * mild }}{{ tail }}",
                f"firm = [0, 1, 2, 3]\nmild = {list(range(30))}\ntail = [\"so\", \"thus\", \"hence\"]")  # fmt: skip
ELITE = [Parent(Context("firm firm. Be kind. Do no harm."), Rate(9, 10, 0.6, 1.0))]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def made(ledger: Ledger, model: Model, wide: str = WIDE, **settings: object) -> tuple[Proposals, Screen]:
    config = SearchConfig.model_validate({"templates": ("wide",), "seed": 3, **settings})
    setup = prepare_search(config, library(wide=wide), prompt_set())
    runner = Runner(model, RefusalJudge(), ledger, GREEDY)
    base = measure_baseline(runner, setup.search, "search")
    screen = Screen(runner, base, base.to_flip())
    return Proposals(setup, runner, base, screen), screen


def test_half_are_bred_once_there_is_an_elite(ledger: Ledger) -> None:
    proposals, _ = made(ledger, Model())
    assert {context.operator for context in proposals.ask(8, [])} == {""}
    children = [context for context in proposals.ask(8, ELITE) if context.operator]
    assert len(children) == 4
    assert all(context.parents == (ELITE[0].context.context_id,) for context in children)


def test_without_breeding_all_come_from_templates(ledger: Ledger) -> None:
    proposals, _ = made(ledger, Model(), breed=0)
    assert {context.template for context in proposals.ask(8, ELITE)} == {"wide"}


def test_the_screen_takes_the_promising_ones_and_leaves_room_for_others(ledger: Ledger) -> None:
    proposals, screen = made(ledger, ScoringModel(), breed=0)
    chosen = proposals.ask(8, [])
    assert screen.num_screened == MIN_PREFIX_SCORED
    assert sorted(strength(context.text) for context in chosen)[2:] == [3] * 6  # two race whatever the screen predicts
    assert len(chosen) == 8


@pytest.mark.parametrize("settings", [{"screen": 1}, {}])
def test_no_screen_where_it_is_off_or_the_model_scores_no_prefixes(ledger: Ledger, settings: dict[str, Any]) -> None:
    proposals, screen = made(ledger, ScoringModel() if settings else Model(), **settings)
    assert len(proposals.ask(8, [])) == 8
    assert screen.num_screened == 0


def test_no_context_comes_twice(ledger: Ledger) -> None:
    proposals, _ = made(ledger, ScoringModel())
    seen: list[str] = []
    for _ in range(4):
        contexts = proposals.ask(6, ELITE)
        seen += [context.context_id for context in contexts]
        for context in contexts:
            proposals.proposer.tell(context, 0.5)
    assert len(seen) == len(set(seen)) == 24


def test_the_same_seed_and_values_give_the_same_contexts() -> None:
    def rounds() -> list[Context]:
        with Ledger("sqlite://") as opened:
            proposals, _ = made(opened, ScoringModel())
            first = proposals.ask(6, ELITE)
            for context in first:
                proposals.proposer.tell(context, 0.1 * strength(context.text))
            return [*first, *proposals.ask(6, ELITE)]

    assert rounds() == rounds()


def test_a_small_space_ends_and_says_so(ledger: Ledger) -> None:
    tiny = template("tiny", "{{ 'firm ' * firm }}end", "firm = [0, 1, 2]")
    config = SearchConfig(templates=("tiny",), breed=0)
    setup = prepare_search(config, library(tiny=tiny), prompt_set())
    runner = Runner(Model(), RefusalJudge(), ledger, GREEDY)
    base = measure_baseline(runner, setup.search, "search")
    proposals = Proposals(setup, runner, base, Screen(runner, base, []))
    assert len(proposals.ask(8, [])) == 3
    assert proposals.ask(8, []) == []
    assert "holds 3 different contexts" in proposals.notes(3)[0]


def test_what_cannot_be_probed_gets_no_value_and_waits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[str] = []
    monkeypatch.setattr(Proposer, "tell", lambda self, context, *rest, **more: values.append(context.context_id))
    config = SearchConfig.model_validate({"templates": ("wide",), "breed": 0})
    setup = prepare_search(config, library(wide=WIDE), prompt_set())
    runner = Runner(LongModel(num_thought=16), LongJudge(), ledger, LONG)
    base = measure_baseline(runner, setup.search, "search")
    proposals = Proposals(setup, runner, base, Screen(runner, base, base.to_flip()))
    proposed: list[Context] = []
    monkeypatch.setattr(proposals.proposer, "ask", lambda num: made_up(proposed, num))
    first, second = proposals.ask(8, []), proposals.ask(8, [])
    assert [context.text for context in (*first, *second)] == [context.text for context in proposed[:16]]
    assert len(proposed) == 16
    assert values == []


def made_up(proposed: list[Context], num: int) -> list[Context]:
    new = [Context(f"now {len(proposed) + index}") for index in range(num)]
    proposed += new
    return new


def test_the_screened_out_race_when_nothing_new_is_left(ledger: Ledger) -> None:
    proposals, screen = made(ledger, ScoringModel(), WIDE.replace(str(list(range(30))), str(list(range(8)))), breed=0)
    raced: list[str] = []
    while contexts := proposals.ask(8, []):
        raced += [context.context_id for context in contexts]
        for context in contexts:
            proposals.proposer.tell(context, 0.5)
    assert len(set(raced)) == len(raced)
    assert len(raced) >= screen.num_screened
