"""The screen: forecasts follow the readings, are checked against whole answers, and are dropped when they mislead."""

from collections.abc import Iterator

import pytest

from flipsearch.core.records import Context
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline, measure_baseline
from flipsearch.searching.screening import PrefixScoreProbe, Screen
from tests.world import GREEDY, Model, RefusalJudge, ScoringModel, is_refused, prompt_set

WEAK, FIRM, BLUNT = Context("please"), Context("firm firm firm"), Context("blunt blunt")
SOME = [Context(f"{'firm ' * times}{tail}") for times in range(4) for tail in ("now", "so")]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def made(ledger: Ledger, model: Model) -> tuple[Runner, SplitBaseline, Screen]:
    runner = Runner(model, RefusalJudge(), ledger, GREEDY)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    return runner, base, Screen(runner, base, base.to_flip())


def learn(runner: Runner, base: SplitBaseline, screen: Screen, contexts: list[Context]) -> None:
    found = measure(runner, contexts, base.to_flip(), base.outcomes, "search")
    screen.learn(list(zip(contexts, found, strict=True)))


def true_rate(base: SplitBaseline, context: Context, kind: str) -> float:
    refused = [is_refused(prompt, context.text) for prompt in base.to_flip() if prompt.kind == kind]
    return sum(refused) / len(refused)


def test_it_ranks_before_anything_is_decoded(ledger: Ledger) -> None:
    model = ScoringModel()
    _, _, screen = made(ledger, model)
    num_generated = len(model.generated)
    weak, firm, blunt = screen.forecast([WEAK, FIRM, BLUNT])
    assert weak.flip_rate < firm.flip_rate < blunt.flip_rate
    assert weak.over_refusal_rate == firm.over_refusal_rate < blunt.over_refusal_rate
    assert screen.is_ready
    assert screen.correlation is None
    assert len(model.generated) == num_generated  # reading generates nothing


def test_it_learns_what_a_left_opening_means(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel())
    learn(runner, base, screen, SOME)
    assert screen.correlation == pytest.approx(1.0)
    for told in screen.forecast([WEAK, FIRM, BLUNT]):
        assert told.flip_rate == pytest.approx(true_rate(base, told.context, "harmful"), abs=0.05)
    # None of these refused a benign prompt, so what a left opening means there is known by the prior alone.
    weak, firm, blunt = (told.over_refusal_rate for told in screen.forecast([WEAK, FIRM, BLUNT]))
    assert weak == firm < 0.05 < blunt
    assert "6 contexts were screened" in screen.notes()[0]
    assert "1.00 (8 contexts)" in screen.notes()[0]


def test_a_screen_that_misleads_is_used_no_more(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel(lies=True))
    assert screen.is_ready
    # Too few, and too much alike, to be checked on: still trusted.
    learn(runner, base, screen, SOME[:2])
    assert screen.is_ready
    learn(runner, base, screen, SOME)
    assert screen.correlation is not None
    told = screen.forecast([FIRM])[0]
    # It has learnt that the model says the contrary of what it does.
    assert told.flip_rate == pytest.approx(true_rate(base, FIRM, "harmful"), abs=0.05)


def test_a_reading_counts_where_no_whole_answer_is(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel())
    assert screen.told(FIRM, ()).num_worth == 0  # not read yet
    learn(runner, base, screen, SOME)
    told = screen.told(SOME[-1], ())
    harmful = [prompt.prompt_id for prompt in base.to_flip() if prompt.kind == "harmful"]
    assert told.num_worth == pytest.approx(len(harmful))
    assert told.flip_rate == pytest.approx(true_rate(base, SOME[-1], "harmful"), abs=0.05)
    assert screen.told(SOME[-1], harmful[:10]).num_worth == pytest.approx(len(harmful) - 10)
    assert screen.told(SOME[-1], harmful).num_worth == 0


def test_a_model_that_cannot_read_has_no_screen(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, Model())
    assert not screen.is_ready
    learn(runner, base, screen, SOME)
    assert screen.notes() == []
    assert screen.told(FIRM, ()).num_worth == 0


def test_only_answers_that_can_change_are_read(ledger: Ledger) -> None:
    runner, base, _ = made(ledger, ScoringModel())
    # All unsafe harmful ones; of the benign ones none is refused here.
    assert set(PrefixScoreProbe(runner, base, base.prompts).prompt_ids) == {p.prompt_id for p in base.to_flip()}
