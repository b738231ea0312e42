"""Measuring: nothing is generated or judged twice, failures are unscored, and the rates follow from the pairs."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import BackendError, JudgeError
from flipsearch.core.progress import Activity, Phase, Step
from flipsearch.core.records import Context, Flip, Label, PrefixScore, Request, Rollout, Sampling, Verdict
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import IN_FLIGHT
from flipsearch.measuring.measure import flip_rate_bounds, has_failed, measure, summarize
from flipsearch.measuring.runner import Runner
from tests.world import GREEDY, REFUSAL, Model, RefusalJudge, benign, flat, harmful

PROMPTS = [harmful(0, 0), harmful(1, 1), benign(0, 1), harmful(2, 3), benign(1, 0), harmful(3, 3)]
FIRM, BLUNT, EMPTY = Context("firm"), Context("blunt blunt"), Context("")


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def runner(ledger: Ledger, sampling: Sampling = GREEDY, **parts: object) -> Runner:
    known = {"backend": Model(), "judge": RefusalJudge(), "ledger": ledger, "sampling": sampling}
    return Runner(**(known | parts))  # type: ignore[arg-type]


def test_rollouts_come_in_the_order_of_the_requests(ledger: Ledger) -> None:
    requests = [Request(prompt, context) for context in (None, FIRM) for prompt in PROMPTS]
    rollouts = runner(ledger).rollouts(requests)
    assert [one.prompt_id for one in rollouts] == [request.prompt.prompt_id for request in requests]
    assert [one.context_id for one in rollouts] == [None] * 6 + [FIRM.context_id] * 6


def test_nothing_is_generated_or_judged_twice(ledger: Ledger) -> None:
    model, judge = Model(), RefusalJudge()
    requests = [Request(prompt, FIRM) for prompt in PROMPTS]
    first = runner(ledger, backend=model, judge=judge)
    outcomes = first.outcomes(requests + requests)
    assert outcomes[:6] == outcomes[6:]
    again = runner(ledger, backend=model, judge=judge)
    assert again.outcomes(requests) == outcomes[:6]
    assert again.rollouts(requests) == first.rollouts(requests)
    assert max(Counter(model.generated).values()) == 1
    assert model.calls == [6]
    assert judge.num_judged == 6
    assert (first.num_generated, again.num_generated) == (6, 0)


def test_another_judge_judges_anew_without_generating(ledger: Ledger) -> None:
    model = Model()
    requests = [Request(prompt) for prompt in PROMPTS]
    runner(ledger, backend=model).outcomes(requests)
    other = RefusalJudge("other")
    runner(ledger, backend=model, judge=other).outcomes(requests)
    assert (len(model.generated), other.num_judged) == (6, 6)


def test_repeats_are_drawn_apart_and_served_apart(ledger: Ledger) -> None:
    """The world's answers do not differ; what tells that they are three draws is that three were generated."""
    model, sampling = Model(), Sampling(max_tokens=8, temperature=0.7)
    repeats = [Request(PROMPTS[1], FIRM, sample_index=index) for index in range(3)]
    drawn = runner(ledger, sampling, backend=model).rollouts(repeats)
    assert [one.sample_index for one in drawn] == [0, 1, 2]
    assert len(set(model.generated)) == 3
    assert runner(ledger, sampling, backend=model).rollouts(repeats[::-1]) == drawn[::-1]
    assert len(model.generated) == 3


def test_a_batch_is_in_flight_while_the_backend_is_at_it(ledger: Ledger) -> None:
    seen: list[int] = []

    def look(_: Request) -> None:
        seen.append(len(json.loads(ledger.notes()[IN_FLIGHT].value)["rollout_ids"]))

    model = Model(before_each=look)
    workspace = runner(ledger, backend=model)
    workspace.rollouts([Request(prompt) for prompt in PROMPTS])
    assert seen == [6] * 6
    assert ledger.notes() == {}
    workspace.rollouts([Request(prompt) for prompt in PROMPTS])
    assert len(seen) == 6


def test_tokens_are_counted_whenever_they_were_generated(ledger: Ledger) -> None:
    requests = [Request(prompt) for prompt in PROMPTS]
    first, second = runner(ledger), runner(ledger)
    first.outcomes(requests[:4])
    second.outcomes(requests)
    first.outcomes(requests)
    assert first.num_tokens == second.num_tokens == sum(len(one.completion_ids) for one in first.rollouts(requests))
    assert (first.num_outcomes, second.num_outcomes) == (6, 6)
    assert second.num_generated_tokens < second.num_tokens


def test_verdicts_take_prompts_in_any_order(ledger: Ledger) -> None:
    workspace = runner(ledger)
    rollouts = workspace.rollouts([Request(prompt) for prompt in PROMPTS])
    labels = [verdict.label for verdict in workspace.verdicts(rollouts, reversed(PROMPTS))]
    assert labels == ["safe", "unsafe", "safe", "unsafe", "safe", "unsafe"]


def test_a_failed_rollout_is_unscored_and_tried_again_by_the_next_run(ledger: Ledger) -> None:
    model, judge = Model(), RefusalJudge()
    requests = [Request(prompt, Context("crash")) for prompt in PROMPTS]
    first = runner(ledger, backend=model, judge=judge)
    for _ in range(2):
        assert {one.verdict for one in first.outcomes(requests)} == {
            Verdict(Label.UNSCORED, reason="the world crashed")
        }
    assert (len(model.generated), judge.num_judged) == (6, 0)
    assert ledger.counts() == {"rollouts": 6, "errors": 6, "verdicts": 0}
    runner(ledger, backend=model).outcomes(requests)
    assert len(model.generated) == 12


def test_every_rollout_is_saved_before_the_next_is_generated(ledger: Ledger) -> None:
    seen: list[int] = []
    model = Model(before_each=lambda request: seen.append(ledger.counts()["rollouts"]))
    runner(ledger, backend=model).rollouts([Request(prompt) for prompt in PROMPTS])
    assert seen == list(range(6))


def test_progress_counts_cached_rollouts_as_done(ledger: Ledger) -> None:
    runner(ledger).outcomes([Request(prompt) for prompt in PROMPTS[:2]])
    told: list[tuple[Step, int, int, int, int]] = []
    workspace = runner(ledger, progress=lambda *values: told.append(values))
    workspace.enter(Phase.SCREEN)
    workspace.outcomes([Request(prompt) for prompt in PROMPTS])
    assert [values[:4] for values in told[:5]] == [(Step(Phase.SCREEN), 2 + k, 6, k) for k in range(5)]
    assert told[-1][:3] == (Step(Phase.SCREEN, activity=Activity.JUDGING), 4, 4)
    assert told[-1][4] == sum(len(one.completion_ids) for one in workspace.rollouts([Request(p) for p in PROMPTS[2:]]))


class Careless(Model):
    """Forgets a request, or gives one twice."""

    def __init__(self, take: Sequence[int]) -> None:
        super().__init__()
        self.take = take

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        rollouts = list(flat(super().generate(requests, sampling)))
        yield [rollouts[index] for index in self.take]


@pytest.mark.parametrize(("take", "says"), [([0], "left 1 of 2 requests"), ([0, 0, 1], "gave it twice")])
def test_a_backend_that_breaks_its_contract(ledger: Ledger, take: list[int], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        runner(ledger, backend=Careless(take)).rollouts([Request(prompt) for prompt in PROMPTS[:2]])


def test_a_judge_that_breaks_its_contract(ledger: Ledger) -> None:
    class Lazy(RefusalJudge):
        def judge(self, exchanges: Sequence[object]) -> list[Verdict]:
            return []

    with pytest.raises(JudgeError, match="0 verdicts on 1 exchanges"):
        runner(ledger, judge=Lazy()).outcomes([Request(PROMPTS[0])])
    assert ledger.counts()["verdicts"] == 0


def test_measure_tells_the_truth(ledger: Ledger) -> None:
    workspace = runner(ledger)
    baseline = workspace.baseline(PROMPTS)
    firm, blunt = measure(workspace, [FIRM, BLUNT], PROMPTS, baseline, "search")
    assert (firm.flip_rate.count, firm.flip_rate.n) == (1, 3)
    assert firm.tfr is not None
    assert (firm.tfr.count, firm.tfr.n) == (1, 4)
    assert (firm.over_refusal_rate.count, firm.over_refusal_rate.n) == (1, 2)
    assert (blunt.flip_rate.count, blunt.over_refusal_rate.count) == (3, 2)
    assert {key: count for key, count in firm.transitions.items() if count} == {
        "unsafe->safe": 1,
        "unsafe->unsafe": 2,
        "safe->safe": 1,
    }
    assert [flip.prompt_id for flip in firm.flips] == [prompt.prompt_id for prompt in PROMPTS]


def test_all_contexts_go_to_the_backend_in_one_call(ledger: Ledger) -> None:
    model = Model()
    workspace = runner(ledger, backend=model)
    baseline = workspace.baseline(PROMPTS)
    measure(workspace, [FIRM, BLUNT, EMPTY], PROMPTS, baseline, "search")
    assert model.calls == [6, 12]  # greedily the empty context is the baseline, and is not asked again


def test_tfr_needs_the_whole_split(ledger: Ledger) -> None:
    workspace = runner(ledger)
    baseline = workspace.baseline(PROMPTS)
    unsafe = [prompt for prompt in PROMPTS if prompt is not PROMPTS[0]]
    assert measure(workspace, [FIRM], unsafe, baseline, "search")[0].tfr is None


@pytest.mark.parametrize(
    ("sampling", "context_id", "index"), [(GREEDY, None, 0), (Sampling(temperature=0.7), EMPTY.context_id, 1)]
)
def test_an_empty_context_is_the_baseline_or_with_sampling_drawn_again(
    ledger: Ledger, sampling: Sampling, context_id: str | None, index: int
) -> None:
    workspace = runner(ledger, sampling)
    baseline = workspace.baseline(PROMPTS)
    placebo = measure(workspace, [EMPTY], PROMPTS, baseline, "search")[0]
    assert placebo.flip_rate.count == 0
    rollouts = ledger.rollouts([id for flip in placebo.flips for id in flip.rollout_ids])
    assert {(one.context_id, one.sample_index) for one in rollouts.values()} == {(context_id, index)}


@pytest.mark.parametrize(("num_mumbled", "failed"), [(1, False), (2, True)])
def test_more_than_a_fifth_unscored_fails(ledger: Ledger, num_mumbled: int, failed: bool) -> None:
    after = [Label.UNSCORED] * num_mumbled + [Label.SAFE] * (5 - num_mumbled)
    flips = [Flip(str(index), "harmful", Label.UNSCORED, label) for index, label in enumerate(after)]
    assert has_failed(summarize(flips, "search", whole=False)) is failed


@pytest.mark.parametrize(("before", "failed"), [(Label.UNSCORED, False), (Label.SAFE, True)])
def test_benign_prompts_fail_only_a_judge_that_is_for_them(before: Label, failed: bool) -> None:
    flips = [Flip(f"h{n}", "harmful", Label.UNSAFE, Label.SAFE) for n in range(5)]
    flips += [Flip(f"b{n}", "benign", before, Label.UNSCORED) for n in range(5)]
    assert has_failed(summarize(flips, "search", whole=False)) is failed


def test_a_judge_that_tells_no_refusals_leaves_the_rate_open(ledger: Ledger) -> None:
    workspace = runner(ledger, judge=RefusalJudge(tells_refusals=False))
    found = measure(workspace, [FIRM], PROMPTS, workspace.baseline(PROMPTS), "search")[0]
    assert (found.over_refusal_rate.n, found.coverage.value) == (0, 1.0)
    assert workspace.rollouts([Request(PROMPTS[0])])[0].completion == REFUSAL


FLIPS = st.lists(
    st.builds(
        Flip,
        st.text(max_size=3),
        st.sampled_from(["harmful", "benign"]),
        st.sampled_from(Label),
        st.sampled_from(Label),
        st.none(),
        st.none() | st.booleans(),
    ),
    max_size=30,
)


@given(FLIPS)
def test_rates_follow_from_the_pairs(flips: list[Flip]) -> None:
    found = summarize(flips, "search", whole=True)
    pairs = [flip for flip in flips if flip.kind == "harmful"]
    assert sum(found.transitions.values()) == len(pairs)
    assert found.flip_rate.count == found.transitions["unsafe->safe"] == sum(flip.flipped for flip in pairs)
    assert found.transitions["safe->unsafe"] == sum(flip.regressed for flip in pairs)
    assert found.tfr is not None
    assert found.tfr.count == found.flip_rate.count
    assert found.tfr.n == sum(n for key, n in found.transitions.items() if "unscored" not in key)
    assert found.coverage.n == len(flips)
    low, high = found.flip_rate_bounds
    value = found.flip_rate.value
    assert 0 <= low <= (low if value is None else value) <= high <= 1


@given(st.lists(st.tuples(st.sampled_from(Label), st.sampled_from(Label)), max_size=5))
def test_bounds_are_what_any_labels_could_give(pairs: list[tuple[Label, Label]]) -> None:
    """Against every way to fill in the unscored sides."""
    options = [[Label.SAFE, Label.UNSAFE] if side is Label.UNSCORED else [side] for pair in pairs for side in pair]
    rates: list[float | None] = []
    for sides in product(*options):
        filled = list(zip(sides[::2], sides[1::2], strict=True))
        unsafe = [after for before, after in filled if before is Label.UNSAFE]
        rates.append(unsafe.count(Label.SAFE) / len(unsafe) if unsafe else None)
    transitions = Counter(f"{before.value}->{after.value}" for before, after in pairs)
    low, high = flip_rate_bounds(transitions)
    known = [rate for rate in rates if rate is not None]
    assert low <= min(known, default=1.0) + 1e-12
    assert high >= max(known, default=0.0) - 1e-12
    if None not in rates:
        assert [low, high] == pytest.approx([min(known), max(known)])


def test_a_file_ledger_serves_a_second_bench(tmp_path: Path) -> None:
    model = Model()
    for _ in range(2):
        with Ledger(tmp_path / "ledger.db") as opened:
            runner(opened, backend=model).outcomes([Request(prompt, FIRM) for prompt in PROMPTS])
    assert len(model.generated) == 6


class ScoringModel(Model):
    """A model that can say how likely it finds an opening."""

    def __init__(self) -> None:
        super().__init__()
        self.num_scored = 0

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        self.num_scored += len(requests)
        return [
            PrefixScore((-0.5,) * len(request.prefill), 1) if request.prefill[0] < 9 else None for request in requests
        ]


def test_readings_are_kept_and_what_cannot_be_read_is_none(ledger: Ledger) -> None:
    model = ScoringModel()
    workspace = runner(ledger, backend=model)
    requests = [Request(PROMPTS[0], FIRM, prefill=(1, 2)), Request(PROMPTS[0], prefill=(1, 2))]
    requests += [Request(PROMPTS[1], FIRM, prefill=(9,)), Request(PROMPTS[1], FIRM, prefill=(3,))]
    found = workspace.score_prefixes(requests)
    assert found == [PrefixScore((-0.5, -0.5), 1), PrefixScore((-0.5, -0.5), 1), None, PrefixScore((-0.5,), 1)]
    assert runner(ledger, backend=model).score_prefixes(requests) == found
    assert model.num_scored == 5  # the one that gave nothing is asked for again


def test_a_backend_that_cannot_read_gives_no_readings(ledger: Ledger) -> None:
    assert runner(ledger).score_prefixes([Request(PROMPTS[0], prefill=(1,))]) == [None]
