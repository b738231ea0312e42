"""The first tokens of an answer rank contexts, whole answers go on from them, and a long thought is left alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from flipsearch.core.records import Context, Prompt, Request
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline, measure_baseline
from flipsearch.searching.screening import GLIMPSE_TOKENS, Screen, ShortDecodeProbe
from tests.world import LONG, LongJudge, LongModel, Model, prompt_set

WEAK, FIRM, BLUNT = Context("please"), Context("firm firm firm"), Context("blunt blunt")
SOME = [Context(f"{'firm ' * times}{tail}") for times in range(4) for tail in ("now", "so")]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def made(ledger: Ledger, model: Model) -> tuple[Runner, SplitBaseline, list[Prompt]]:
    runner = Runner(model, LongJudge(), ledger, LONG)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    return runner, base, list(base.to_flip())


def test_a_glimpse_ranks_and_costs_its_tokens_alone(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made(ledger, model)
    before = model.num_written
    weak, firm, blunt = Screen(runner, base, prompts).forecast([WEAK, FIRM, BLUNT])
    assert weak.flip_rate < firm.flip_rate < blunt.flip_rate
    assert weak.over_refusal_rate == firm.over_refusal_rate < blunt.over_refusal_rate
    assert model.num_written - before == 3 * len(prompts) * GLIMPSE_TOKENS


def test_whole_answers_go_on_and_are_what_they_would_have_been(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made(ledger, model)
    Screen(runner, base, prompts).forecast([FIRM])
    before = model.num_written, runner.num_generated_tokens
    (found,) = measure(runner, [FIRM], prompts, base.outcomes, "search")
    with Ledger("sqlite://") as other:
        plain, same_base, _ = made(other, LongModel())
        assert (found,) == tuple(measure(plain, [FIRM], prompts, same_base.outcomes, "search"))
        ids = [id for flip in found.flips for id in flip.rollout_ids]
        assert ledger.rollouts(ids) == other.rollouts(ids)
        lengths = sum(other.lengths(ids).values())
        assert plain.num_tokens == runner.num_tokens  # what a budget counts: nothing twice
    assert model.num_written - before[0] == lengths - len(ids) * GLIMPSE_TOKENS
    assert runner.num_generated_tokens - before[1] == lengths - len(ids) * GLIMPSE_TOKENS


def test_an_answer_that_ends_within_a_glimpse_is_whole(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made(ledger, model)
    requests = [Request(prompt, FIRM) for prompt in prompts]
    runner.short_decodes(requests, LONG.max_tokens - 1)
    before = model.num_written
    assert [one.verdict for one in runner.outcomes(requests)] == runner.verdicts(runner.rollouts(requests), prompts)
    assert model.num_written == before
    assert measure(runner, [FIRM], prompts, base.outcomes, "search")[0].coverage.value == 1.0


def test_its_rank_correlation_is_said(ledger: Ledger) -> None:
    runner, base, prompts = made(ledger, LongModel())
    screen = Screen(runner, base, prompts)
    screen.forecast(SOME)
    screen.learn(list(zip(SOME, measure(runner, SOME, prompts, base.outcomes, "search"), strict=True)))
    assert screen.correlation == pytest.approx(1.0)
    assert f"screened by the first {GLIMPSE_TOKENS} tokens of answers on {len(prompts)} prompts" in screen.notes()[0]
    assert f"({len(SOME)} contexts)" in screen.notes()[0]
    whole = [prompt.prompt_id for prompt in prompts]
    assert screen.told(SOME[0], whole).num_worth == 0  # whole answers say it already


def test_a_thought_tells_nothing_and_is_not_waited_for(ledger: Ledger) -> None:
    model = LongModel(num_thought=GLIMPSE_TOKENS)
    runner, base, prompts = made(ledger, model)
    screen = Screen(runner, base, prompts)
    assert screen.num_candidates(8, 4) == 16
    before = model.num_written
    assert screen.forecast([WEAK, FIRM, BLUNT, *SOME]) == []
    assert model.num_written - before == 3 * len(prompts) * GLIMPSE_TOKENS  # of the first contexts alone
    assert not screen.is_ready
    assert screen.num_candidates(8, 4) == 8
    assert "they tell too little" in screen.notes()[0]


def test_one_context_that_cannot_be_scored_ends_nothing(ledger: Ledger) -> None:
    runner, base, prompts = made(ledger, LongModel())
    screen = Screen(runner, base, prompts)
    assert [one.context for one in screen.forecast([Context("mumble"), FIRM, BLUNT])] == [FIRM, BLUNT]
    assert screen.is_ready
    assert screen.forecast([FIRM])[0].flip_rate > 0  # known already: nothing to look at, and nothing ends


def test_drawn_answers_go_on_only_where_that_is_the_same_draw(ledger: Ledger) -> None:
    model = LongModel()
    runner = Runner(model, LongJudge(), ledger, replace(LONG, temperature=0.7))
    requests = [Request(prompt, FIRM) for prompt in prompt_set()[:6]]
    for knows, prefills in ((False, {0}), (True, {GLIMPSE_TOKENS})):
        model.resumes_sampling = knows
        asked = [replace(request, sample_index=int(knows)) for request in requests]
        runner.short_decodes(asked, GLIMPSE_TOKENS)
        model.prefills.clear()
        runner.outcomes(asked)
        assert set(model.prefills) == prefills


def test_short_answers_are_not_glimpsed(ledger: Ledger) -> None:
    runner = Runner(Model(), LongJudge(), ledger, LONG)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    assert not ShortDecodeProbe(runner, base, base.prompts).prompt_ids
