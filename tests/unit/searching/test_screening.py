"""The screen: predictions follow prefix scores or short decodes, are checked against whole answers, and are dropped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from flipsearch.core.records import Context, PrefixScore, Prompt, Request, Rollout, Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure, measured_trial
from flipsearch.measuring.runner import Runner
from flipsearch.searching.after.depth import measure_depth
from flipsearch.searching.baseline import SplitBaseline, measure_baseline
from flipsearch.searching.screening import SHORT_DECODE_TOKENS, PrefixScoreProbe, Screen, ShortDecodeProbe
from tests.world import (
    GREEDY,
    LONG,
    LongJudge,
    LongModel,
    Model,
    RefusalJudge,
    ScoringModel,
    is_refused,
    prompt_set,
)

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
    measurements = measure(runner, contexts, base.to_flip(), base.outcomes, "search")
    screen.learn(list(zip(contexts, measurements, strict=True)))


def true_rate(base: SplitBaseline, context: Context, kind: str) -> float:
    refused = [is_refused(prompt, context.text) for prompt in base.to_flip() if prompt.kind == kind]
    return sum(refused) / len(refused)


def test_it_ranks_before_anything_is_decoded(ledger: Ledger) -> None:
    model = ScoringModel()
    _, _, screen = made(ledger, model)
    num_generated = len(model.generated)
    weak, firm, blunt = screen.predict([WEAK, FIRM, BLUNT])
    assert weak.flip_rate < firm.flip_rate < blunt.flip_rate
    assert weak.over_refusal_rate == firm.over_refusal_rate < blunt.over_refusal_rate
    assert screen.num_candidates(1, 4) > 1
    assert screen.correlation is None
    assert len(model.generated) == num_generated  # scoring generates nothing


def test_it_learns_what_leaving_a_known_answer_means(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel())
    learn(runner, base, screen, SOME)
    assert screen.correlation == pytest.approx(1.0)
    for prediction in screen.predict([WEAK, FIRM, BLUNT]):
        assert prediction.flip_rate == pytest.approx(true_rate(base, prediction.context, "harmful"), abs=0.05)
    # None of these refused a benign prompt, so what leaving a known answer means there is known by the prior alone.
    weak, firm, blunt = (prediction.over_refusal_rate for prediction in screen.predict([WEAK, FIRM, BLUNT]))
    assert weak == firm < 0.05 < blunt
    assert "6 contexts were screened" in screen.notes()[0]
    assert "1.00 (8 contexts)" in screen.notes()[0]


def test_a_screen_that_misleads_is_used_no_more(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel(lies=True))
    assert screen.num_candidates(1, 4) > 1
    # Too few, and too much alike, to be checked on: still trusted.
    learn(runner, base, screen, SOME[:2])
    assert screen.num_candidates(1, 4) > 1
    learn(runner, base, screen, SOME)
    assert screen.correlation is not None
    prediction = screen.predict([FIRM])[0]
    # It has learnt that the model says the contrary of what it does.
    assert prediction.flip_rate == pytest.approx(true_rate(base, FIRM, "harmful"), abs=0.05)


def test_a_prefix_score_counts_where_no_whole_answer_is(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, ScoringModel())
    assert screen.evidence(FIRM, ()).weight == 0  # not probed yet
    learn(runner, base, screen, SOME)
    evidence = screen.evidence(SOME[-1], ())
    harmful = [prompt.prompt_id for prompt in base.to_flip() if prompt.kind == "harmful"]
    assert evidence.weight == pytest.approx(len(harmful))
    assert evidence.flip_rate == pytest.approx(true_rate(base, SOME[-1], "harmful"), abs=0.05)
    assert screen.evidence(SOME[-1], harmful[:10]).weight == pytest.approx(len(harmful) - 10)
    assert screen.evidence(SOME[-1], harmful).weight == 0


def test_a_model_that_scores_no_prefixes_has_no_screen(ledger: Ledger) -> None:
    runner, base, screen = made(ledger, Model())
    assert screen.num_candidates(1, 4) == 1
    learn(runner, base, screen, SOME)
    assert screen.notes() == []
    assert screen.evidence(FIRM, ()).weight == 0


def test_only_answers_that_can_change_are_scored(ledger: Ledger) -> None:
    runner, base, _ = made(ledger, ScoringModel())
    # All unsafe harmful ones; of the benign ones none is refused here.
    assert set(PrefixScoreProbe(runner, base, base.prompts).prompt_ids) == {p.prompt_id for p in base.to_flip()}


def made_long(ledger: Ledger, model: Model) -> tuple[Runner, SplitBaseline, list[Prompt]]:
    runner = Runner(model, LongJudge(), ledger, LONG)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    return runner, base, list(base.to_flip())


def test_a_short_decode_ranks_and_costs_its_tokens_alone(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made_long(ledger, model)
    before = model.num_written
    weak, firm, blunt = Screen(runner, base, prompts).predict([WEAK, FIRM, BLUNT])
    assert weak.flip_rate < firm.flip_rate < blunt.flip_rate
    assert weak.over_refusal_rate == firm.over_refusal_rate < blunt.over_refusal_rate
    assert model.num_written - before == 3 * len(prompts) * SHORT_DECODE_TOKENS


def test_whole_answers_go_on_and_are_what_they_would_have_been(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made_long(ledger, model)
    Screen(runner, base, prompts).predict([FIRM])
    before = model.num_written, runner.num_generated_tokens
    (measured,) = measure(runner, [FIRM], prompts, base.outcomes, "search")
    with Ledger("sqlite://") as other:
        plain, same_base, _ = made_long(other, LongModel())
        assert (measured,) == tuple(measure(plain, [FIRM], prompts, same_base.outcomes, "search"))
        ids = [id for flip in measured.flips for id in flip.rollout_ids]
        assert ledger.rollouts(ids) == other.rollouts(ids)
        lengths = sum(other.lengths(ids).values())
        assert plain.num_tokens == runner.num_tokens  # what a budget counts: nothing twice
    assert model.num_written - before[0] == lengths - len(ids) * SHORT_DECODE_TOKENS
    assert runner.num_generated_tokens - before[1] == lengths - len(ids) * SHORT_DECODE_TOKENS


def test_an_answer_that_ends_within_a_short_decode_is_whole(ledger: Ledger) -> None:
    model = LongModel()
    runner, base, prompts = made_long(ledger, model)
    requests = [Request(prompt, FIRM) for prompt in prompts]
    runner.short_decodes(requests, LONG.max_tokens - 1)
    before = model.num_written
    assert [judged.verdict for judged in runner.outcomes(requests)] == runner.verdicts(
        runner.rollouts(requests), prompts
    )
    assert model.num_written == before
    assert measure(runner, [FIRM], prompts, base.outcomes, "search")[0].coverage.value == 1.0


def test_its_rank_correlation_is_reported(ledger: Ledger) -> None:
    runner, base, prompts = made_long(ledger, LongModel())
    screen = Screen(runner, base, prompts)
    screen.predict(SOME)
    screen.learn(list(zip(SOME, measure(runner, SOME, prompts, base.outcomes, "search"), strict=True)))
    assert screen.correlation == pytest.approx(1.0)
    assert (
        f"screened by the first {SHORT_DECODE_TOKENS} tokens of answers on {len(prompts)} prompts" in screen.notes()[0]
    )
    assert f"({len(SOME)} contexts)" in screen.notes()[0]
    whole = [prompt.prompt_id for prompt in prompts]
    assert screen.evidence(SOME[0], whole).weight == 0  # whole answers show it already


def test_an_unfinished_thought_ends_the_probe_after_the_pilot(ledger: Ledger) -> None:
    model = LongModel(num_thought=SHORT_DECODE_TOKENS)
    runner, base, prompts = made_long(ledger, model)
    screen = Screen(runner, base, prompts)
    assert screen.num_candidates(8, 4) == 16
    before = model.num_written
    assert screen.predict([WEAK, FIRM, BLUNT, *SOME]) == []
    assert model.num_written - before == 3 * len(prompts) * SHORT_DECODE_TOKENS  # of the first contexts alone
    assert screen.num_candidates(1, 4) == 1
    assert screen.num_candidates(8, 4) == 8
    assert "can score too few" in screen.notes()[0]


def test_one_context_that_cannot_be_scored_ends_nothing(ledger: Ledger) -> None:
    runner, base, prompts = made_long(ledger, LongModel())
    screen = Screen(runner, base, prompts)
    assert [prediction.context for prediction in screen.predict([Context("mumble"), FIRM, BLUNT])] == [FIRM, BLUNT]
    assert screen.num_candidates(1, 4) > 1
    assert screen.predict([FIRM])[0].flip_rate > 0  # probed already: nothing is decoded, and nothing ends


def test_sampled_answers_go_on_only_where_that_gives_the_same_sample(ledger: Ledger) -> None:
    model = LongModel()
    runner = Runner(model, LongJudge(), ledger, replace(LONG, temperature=0.7))
    requests = [Request(prompt, FIRM) for prompt in prompt_set()[:6]]
    for resumes, prefills in ((False, {0}), (True, {SHORT_DECODE_TOKENS})):
        model.resumes_sampling = resumes
        requested = [replace(request, sample_index=int(resumes)) for request in requests]
        runner.short_decodes(requested, SHORT_DECODE_TOKENS)
        model.prefills.clear()
        runner.outcomes(requested)
        assert set(model.prefills) == prefills


def test_short_answers_are_not_probed(ledger: Ledger) -> None:
    runner = Runner(Model(), LongJudge(), ledger, LONG)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    assert not ShortDecodeProbe(runner, base, base.prompts).prompt_ids


class LongThinker(ScoringModel):
    """The same world, whose model thinks for a hundred tokens before each answer; it keeps what it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        for batch in super().generate(requests, sampling):
            yield [
                replace(rollout, completion_ids=(99,) * 100 + rollout.completion_ids, num_thought_tokens=100)
                for rollout in batch
            ]

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        self.scored += requests
        return super().score(requests)


def test_it_looks_at_the_answer_behind_a_long_thought(ledger: Ledger) -> None:
    model = LongThinker()
    _, _, screen = made(ledger, model)
    weak, firm = screen.predict([WEAK, FIRM])
    assert weak.flip_rate < firm.flip_rate
    assert model.scored
    assert all(request.skips_thought and 99 not in request.prefill for request in model.scored)


def test_depths_count_from_the_answer_behind_a_long_thought(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, base, _ = made(ledger, LongThinker())
    (measured,) = measure(runner, [FIRM], base.to_flip(), base.outcomes, "search")
    trial = measured_trial(runner, 0, FIRM, "arm", measured)
    begun: list[Request] = []

    def keep(requests: Sequence[Request]) -> list[object]:
        begun.extend(requests)
        return []

    monkeypatch.setattr(runner, "outcomes", keep)
    measure_depth(runner, base, [trial], [2])
    assert {len(request.prefill) for request in begun} == {102}
