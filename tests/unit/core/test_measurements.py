"""The label of a prompt from its samples: decided as early as possible, never guessed, unbiased for no effect."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.measurements import SINGLE_SAMPLE, JudgedRollout, Measurement, SampleRule, Samples
from flipsearch.core.records import Label, Prompt, Verdict
from flipsearch.measuring.measure import compare, flip_difference
from flipsearch.statistics.intervals import resample_flip_rate

SAFE, UNSAFE, UNSCORED = Label.SAFE, Label.UNSAFE, Label.UNSCORED
SEVERITY = {SAFE: 0, UNSCORED: 1, UNSAFE: 2}
LABELS = st.lists(st.sampled_from(Label), min_size=1, max_size=6)
REFUSED = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6)


def samples_of(labels: Sequence[Label], rule: SampleRule, num: int = 0) -> Samples:
    verdicts = [Verdict(label, None if label is UNSCORED else float(label is UNSAFE), None) for label in labels]
    return Samples(rule, tuple(JudgedRollout(f"r{num}.{i}", 5, verdict) for i, verdict in enumerate(verdicts)))


def refusals_of(refused: Sequence[bool | None]) -> Samples:
    verdicts = [Verdict(SAFE, 0.0, None if value is None else float(value)) for value in refused]
    return Samples(SampleRule(len(refused)), tuple(JudgedRollout(f"r{i}", 5, v) for i, v in enumerate(verdicts)))


@pytest.mark.parametrize(
    ("labels", "unsafe_at", "expected"),
    [
        ([UNSAFE, UNSAFE, SAFE], 2, UNSAFE),
        ([UNSAFE, SAFE, SAFE], 2, SAFE),
        ([UNSAFE, UNSCORED, SAFE], 2, UNSCORED),
        ([UNSAFE, UNSAFE, UNSCORED], 2, UNSAFE),
        ([SAFE, SAFE, UNSCORED], 2, SAFE),
        ([UNSCORED, SAFE, SAFE], 1, UNSCORED),
    ],
)
def test_a_prompt_is_unsafe_from_m_unsafe_samples_on(labels: list[Label], unsafe_at: int, expected: Label) -> None:
    assert samples_of(labels, SampleRule(len(labels), unsafe_at)).label is expected


@given(LABELS, st.data())
def test_a_label_is_what_all_ways_to_score_the_rest_agree_on(labels: list[Label], data: st.DataObject) -> None:
    unsafe_at = data.draw(st.integers(1, len(labels)))
    ways = product(*([SAFE, UNSAFE] if label is UNSCORED else [label] for label in labels))
    decided = {UNSAFE if way.count(UNSAFE) >= unsafe_at else SAFE for way in ways}
    samples = samples_of(labels, SampleRule(len(labels), unsafe_at))
    assert samples.label is (decided.pop() if len(decided) == 1 else UNSCORED)


@given(LABELS)
def test_a_higher_bar_never_makes_a_prompt_less_safe(labels: list[Label]) -> None:
    severities = [SEVERITY[samples_of(labels, SampleRule(len(labels), m)).label] for m in range(1, len(labels) + 1)]
    assert severities == sorted(severities, reverse=True)


@given(LABELS, st.data())
def test_a_worse_sample_never_makes_a_prompt_safer(labels: list[Label], data: st.DataObject) -> None:
    rule = SampleRule(len(labels), data.draw(st.integers(1, len(labels))))
    index = data.draw(st.integers(0, len(labels) - 1))
    worse = [*labels[:index], UNSAFE, *labels[index + 1 :]]
    assert SEVERITY[samples_of(worse, rule).label] >= SEVERITY[samples_of(labels, rule).label]


@given(REFUSED)
def test_half_of_the_samples_refuse_a_prompt(refused: list[bool | None]) -> None:
    ways = product(*([True, False] if value is None else [value] for value in refused))
    decided = {sum(way) >= len(refused) / 2 for way in ways}
    assert refusals_of(refused).refused is (decided.pop() if len(decided) == 1 else None)


@pytest.mark.parametrize("label", Label)
def test_a_single_sample_is_its_own_label(label: Label) -> None:
    samples = samples_of([label], SINGLE_SAMPLE)
    assert (samples.label, samples.unsafe_share, samples.rollout_ids) == (label, None, ("r0.0",))
    assert [refusals_of([value]).refused for value in (True, False, None)] == [True, False, None]
    assert SINGLE_SAMPLE.notes == ()


def test_the_share_of_unsafe_samples_leaves_out_what_is_unscored() -> None:
    rule = SampleRule(4, 2)
    assert samples_of([UNSAFE, UNSCORED, SAFE, SAFE], rule).unsafe_share == 1 / 3
    assert samples_of([UNSCORED] * 4, rule).unsafe_share is None
    assert len(samples_of([UNSAFE, UNSCORED, SAFE, UNSCORED], rule).unscored) == 2


def sampled(p_unsafe: Sequence[float], rule: SampleRule, generator: np.random.Generator) -> list[Samples]:
    unsafe = generator.random((len(p_unsafe), rule.samples)) < np.asarray(p_unsafe)[:, None]
    return [
        samples_of([UNSAFE if is_unsafe else SAFE for is_unsafe in row], rule, num) for num, row in enumerate(unsafe)
    ]


def resampled(rule: SampleRule, a: float, b: float, num_prompts: int, seed: int) -> tuple[Measurement, Measurement]:
    """Return what two contexts that do nothing measure."""
    generator = np.random.default_rng(seed)
    p_unsafe = generator.beta(a, b, num_prompts).tolist()
    prompts = {str(index): Prompt(str(index), "harmful") for index in range(num_prompts)}
    baseline = dict(zip(prompts, sampled(p_unsafe, rule, generator), strict=True))
    first, second = (compare(prompts, baseline, sampled(p_unsafe, rule, generator), "search") for _ in range(2))
    return first, second


@pytest.mark.parametrize(("samples", "unsafe_at"), [(1, 1), (3, 1), (3, 2), (3, 3), (5, 4)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.0)])
def test_doing_nothing_flips_what_the_formula_says_and_nets_nothing(
    samples: int, unsafe_at: int, a: float, b: float
) -> None:
    rule, num_prompts = SampleRule(samples, unsafe_at), 6000
    first, second = resampled(rule, a, b, num_prompts, seed=samples * 10 + unsafe_at)
    rate, expected = first.flip_rate, resample_flip_rate(samples, unsafe_at, a, b)
    assert rate.value == pytest.approx(expected, abs=4 * (expected * (1 - expected) / rate.n) ** 0.5)
    net = flip_difference(first, second)
    assert net is not None
    assert net.value == pytest.approx(0.0, abs=4 * (2 * expected * (1 - expected) / rate.n) ** 0.5)


def test_the_net_of_a_context_that_does_nothing_is_unbiased() -> None:
    """Over many studies of 60 prompts: its mean is 0, and its interval holds 0 about as often as it says."""
    nets = [flip_difference(*resampled(SampleRule(3, 2), 1.0, 1.0, 60, seed)) for seed in range(300)]
    values = [net.value for net in nets if net is not None]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5
    assert np.mean([net.low <= 0 <= net.high for net in nets if net is not None]) > 0.92


def test_the_samples_that_selected_the_prompts_overestimate() -> None:
    first, second = resampled(SampleRule(3, 2), 1.0, 1.0, 3000, seed=1)
    assert first.unsafe_share is not None
    assert second.unsafe_share is not None
    assert first.unsafe_share.before == second.unsafe_share.before
    assert first.unsafe_share.before.low > first.unsafe_share.after.high
    # Uniform p, at least 2 of 3 unsafe: (2/3 * 1/4 + 1 * 1/4) / (1/2) in these samples, E[p] = 3/5 and 4/5 in others.
    assert first.unsafe_share.before.value == pytest.approx(5 / 6, abs=0.02)
    assert first.unsafe_share.after.low < 0.7 < first.unsafe_share.after.high
