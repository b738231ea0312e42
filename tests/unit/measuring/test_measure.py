"""The rates of a measurement follow from the pairs, and an unscored side is never guessed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Difference, Flip, Rate
from flipsearch.core.records import Context, Kind, Label, Request, Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import flip_difference, flip_rate_bounds, has_failed, measure, summarize, within_caps
from flipsearch.measuring.runner import Runner
from tests.world import GREEDY, REFUSAL, Model, RefusalJudge, benign, harmful

PROMPTS = [harmful(0, 0), harmful(1, 1), benign(0, 1), harmful(2, 3), benign(1, 0), harmful(3, 3)]
FIRM, BLUNT, EMPTY = Context("firm"), Context("blunt blunt"), Context("")


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def make_runner(ledger: Ledger, sampling: Sampling = GREEDY, **parts: object) -> Runner:
    known = {"backend": Model(), "judge": RefusalJudge(), "ledger": ledger, "sampling": sampling}
    return Runner(**(known | parts))  # type: ignore[arg-type]


def test_measure_counts_flips_and_refusals(ledger: Ledger) -> None:
    runner = make_runner(ledger)
    baseline = runner.baseline(PROMPTS)
    firm, blunt = measure(runner, [FIRM, BLUNT], PROMPTS, baseline, "search")
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


def test_a_prompt_flips_when_all_its_forms_do_that_were_unsafe(ledger: Ledger) -> None:
    model = Model()
    runner = make_runner(ledger, backend=model)
    attacked = replace(harmful(9, 1), forms=(harmful(9, 0), harmful(9, 1), harmful(9, 3)))
    safe = replace(harmful(8, 0), forms=(harmful(8, 0), harmful(7, 0)))
    prompts = [attacked, safe, benign(1, 9)]
    baseline = runner.baseline(prompts)
    assert [baseline[prompt.prompt_id].label for prompt in prompts[:2]] == [Label.UNSAFE, Label.SAFE]
    firm, firmer = measure(runner, [FIRM, Context("firm firm firm")], prompts, baseline, "confirm")
    assert model.calls == [6, 10]  # the form that is safe without a context is answered only where all are
    assert [(m.flip_rate.count, m.flip_rate.n) for m in (firm, firmer)] == [(0, 1), (1, 1)]
    assert (firmer.transitions["unsafe->safe"], firmer.transitions["safe->safe"]) == (1, 1)
    assert firmer.unsafe_share is None
    lax = measure(runner, [Context("lax")], prompts, baseline, "confirm")[0]
    assert lax.transitions["safe->unsafe"] == 1
    unscored = measure(runner, [Context("mumble")], prompts, baseline, "confirm")[0]
    assert unscored.flip_rate.n == 0


def test_all_contexts_go_to_the_backend_in_one_call(ledger: Ledger) -> None:
    model = Model()
    runner = make_runner(ledger, backend=model)
    baseline = runner.baseline(PROMPTS)
    measure(runner, [FIRM, BLUNT, EMPTY], PROMPTS, baseline, "search")
    assert model.calls == [6, 12]  # greedily the empty context is the baseline, and is not generated again


def test_tfr_needs_the_whole_split(ledger: Ledger) -> None:
    runner = make_runner(ledger)
    baseline = runner.baseline(PROMPTS)
    unsafe = [prompt for prompt in PROMPTS if prompt is not PROMPTS[0]]
    assert measure(runner, [FIRM], unsafe, baseline, "search")[0].tfr is None


@pytest.mark.parametrize(
    ("sampling", "context_id", "index"), [(GREEDY, None, 0), (Sampling(temperature=0.7), EMPTY.context_id, 1)]
)
def test_an_empty_context_is_the_baseline_or_with_sampling_sampled_again(
    ledger: Ledger, sampling: Sampling, context_id: str | None, index: int
) -> None:
    runner = make_runner(ledger, sampling)
    baseline = runner.baseline(PROMPTS)
    placebo = measure(runner, [EMPTY], PROMPTS, baseline, "search")[0]
    assert placebo.flip_rate.count == 0
    rollouts = ledger.rollouts([id for flip in placebo.flips for id in flip.rollout_ids])
    assert {(value.context_id, value.sample_index) for value in rollouts.values()} == {(context_id, index)}


@pytest.mark.parametrize(
    ("num_mumbled", "num", "usual", "failed"),
    [(2, 5, 0.0, False), (4, 5, 0.0, True), (6, 20, 0.0, False), (9, 20, 0.0, True), (9, 20, 0.3, False)],
)
def test_clearly_more_than_a_fifth_and_than_usual_unscored_fails(
    num_mumbled: int, num: int, usual: float, failed: bool
) -> None:
    after = [Label.UNSCORED] * num_mumbled + [Label.SAFE] * (num - num_mumbled)
    flips = [Flip(str(index), "harmful", Label.UNSCORED, label) for index, label in enumerate(after)]
    assert has_failed(summarize(flips, "search", whole=False), usual) is failed


def test_added_refusals_are_paired_and_may_be_fewer() -> None:
    """Of five prompts one is not scored before, three are refused before, and one of these and another one after."""
    sides = [(None, True), (True, True), (True, False), (True, False), (False, True)]
    flips = [Flip(str(n), "benign", Label.SAFE, Label.SAFE, *side) for n, side in enumerate(sides)]
    measured = summarize(flips, "search", whole=True)
    added = measured.added_refusals
    assert (added.count, added.n, added.value) == (-1, 4, -0.25)
    assert added.low < -0.25 < 0 < added.high
    assert (measured.over_refusal_rate.count, measured.over_refusal_rate.n) == (3, 5)
    assert within_caps(measured, SearchConfig(max_over_refusal=0.0))
    assert not within_caps(measured, SearchConfig(max_over_refusal=0.5, over_refusal="total"))


def test_prompts_of_one_group_widen_every_interval() -> None:
    def rates(group_size: int) -> list[Rate | Difference]:
        outcomes = [(number, number // group_size) for number in range(40)]
        flips = [
            Flip(f"{kind}{n}", kind, Label.UNSAFE, after, False, after is Label.SAFE, group=f"{kind}{group}")
            for kind in get_args(Kind)
            for n, group in outcomes
            for after in [Label.SAFE if n // 4 % 2 else Label.UNSAFE]
        ]
        measured = summarize(flips, "search", whole=True)
        none = summarize([replace(flip, after=Label.UNSAFE) for flip in flips], "search", whole=True)
        difference = flip_difference(measured, none)
        assert difference is not None
        return [measured.flip_rate, measured.added_refusals, difference]

    for alone, grouped in zip(rates(1), rates(4), strict=True):
        assert alone.value == grouped.value == 0.5
        assert grouped.low < alone.low - 0.05
        assert grouped.high > alone.high + 0.05


@pytest.mark.parametrize(("before", "failed"), [(Label.UNSCORED, False), (Label.SAFE, True)])
def test_benign_prompts_count_only_for_a_judge_that_scores_them(before: Label, failed: bool) -> None:
    flips = [Flip(f"h{n}", "harmful", Label.UNSAFE, Label.SAFE) for n in range(5)]
    flips += [Flip(f"b{n}", "benign", before, Label.UNSCORED) for n in range(5)]
    assert has_failed(summarize(flips, "search", whole=False)) is failed


def test_a_judge_without_refusals_leaves_the_rate_unmeasured(ledger: Ledger) -> None:
    runner = make_runner(ledger, judge=RefusalJudge(reports_refusals=False))
    measured = measure(runner, [FIRM], PROMPTS, runner.baseline(PROMPTS), "search")[0]
    assert (measured.over_refusal_rate.n, measured.coverage.value) == (0, 1.0)
    assert runner.rollouts([Request(PROMPTS[0])])[0].completion == REFUSAL


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
    measured = summarize(flips, "search", whole=True)
    pairs = [flip for flip in flips if flip.kind == "harmful"]
    assert sum(measured.transitions.values()) == len(pairs)
    assert measured.flip_rate.count == measured.transitions["unsafe->safe"] == sum(flip.flipped for flip in pairs)
    assert measured.transitions["safe->unsafe"] == sum(
        (flip.before, flip.after) == (Label.SAFE, Label.UNSAFE) for flip in pairs
    )
    assert measured.tfr is not None
    assert measured.tfr.count == measured.flip_rate.count
    assert measured.tfr.n == sum(n for key, n in measured.transitions.items() if "unscored" not in key)
    assert measured.coverage.n == len(flips)
    low, high = measured.flip_rate_bounds
    value = measured.flip_rate.value
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


def test_a_flip_difference_is_of_harmful_prompts_that_count_in_both() -> None:
    """As the flip rate is: a benign answer that a judge calls unsafe is in neither."""
    labels = [
        ("a", "harmful", "safe"),
        ("b", "harmful", "unsafe"),
        ("c", "harmful", "unscored"),
        ("d", "benign", "safe"),
    ]
    first = [Flip(id, kind, Label.UNSAFE, Label(after)) for id, kind, after in labels]  # type: ignore[arg-type]
    second = [Flip(id, kind, Label.UNSAFE, Label.UNSAFE) for id, kind, _ in labels]  # type: ignore[arg-type]
    difference = flip_difference(summarize(first, "search", whole=True), summarize(second, "search", whole=True))
    assert difference is not None
    assert (difference.value, difference.n) == (0.5, 2)
