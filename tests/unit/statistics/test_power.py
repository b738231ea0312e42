"""Power of the paired test, and what sampling again flips by itself: equations and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binom

from flipsearch.statistics.intervals import detectable_difference, mcnemar_mid_p, pairs_needed, resample_flip_rate


def test_a_case_worked_by_hand() -> None:
    """(1.95996 sqrt(0.2) + 0.84162 sqrt(0.2 - 0.01))^2 / 0.01 = (0.87652 + 0.36685)^2 / 0.01 = 154.6."""
    assert pairs_needed(0.1, 0.2) == 155
    assert pairs_needed(0.05, 0.2) == 626


@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0), st.floats(0.5, 0.99))
def test_the_detectable_difference_needs_just_these_pairs(delta: float, discordant: float, power: float) -> None:
    discordant = max(delta, discordant)
    num = pairs_needed(delta, discordant, power=power)
    result = detectable_difference(num, discordant, power=power)
    assert result is not None
    assert result <= delta + 1e-9
    assert pairs_needed(result, max(result, discordant), power=power) in (num, num + 1)  # rounding at the edge


def test_more_pairs_detect_smaller_differences() -> None:
    result = [detectable_difference(num, 0.2) for num in (10, 30, 100, 300, 1000)]
    assert result == sorted(result, key=lambda first: -(first or 0))
    assert detectable_difference(3, 0.2) is None
    assert detectable_difference(0, 0.2) is None


@pytest.mark.parametrize(("delta", "discordant"), [(0.1, 0.2), (0.05, 0.1), (0.15, 0.3)])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_test_finds_the_difference_as_often_as_promised(delta: float, discordant: float, power: float) -> None:
    num = pairs_needed(delta, discordant, power=power)
    generator = np.random.default_rng(0)
    shares = [(discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant]
    tables = generator.multinomial(num, shares, size=4000)
    result = np.mean([mcnemar_mid_p(int(first), int(second)) < 0.05 for first, second, _ in tables])
    assert result == pytest.approx(power, abs=0.03)


@pytest.mark.parametrize(("delta", "discordant"), [(0.0, 0.2), (0.3, 0.2), (0.3, 1.2)])
def test_impossible_shares(delta: float, discordant: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < delta <= discordant <= 1"):
        pairs_needed(delta, discordant)


def test_impossible_errors() -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha < power < 1"):
        pairs_needed(0.1, 0.2, power=1.0)
    with pytest.raises(ValueError, match="expected 0 < discordant <= 1"):
        detectable_difference(10, 0.0)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 3.0), (0.3, 0.7)])
def test_one_sample_flips_b_of_a_plus_b_plus_1(a: float, b: float) -> None:
    assert resample_flip_rate(1, 1, a, b) == pytest.approx(b / (a + b + 1))


@pytest.mark.parametrize(("samples", "unsafe_at"), [(1, 1), (3, 2), (5, 1), (5, 5), (16, 9)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0)])
def test_the_resample_flip_rate_is_the_integral_over_p(samples: int, unsafe_at: int, a: float, b: float) -> None:
    def unsafe(p: float) -> float:
        return float(binom.sf(unsafe_at - 1, samples, p))

    selected = quad(lambda p: unsafe(p) * beta.pdf(p, a, b), 0, 1)[0]
    flipped = quad(lambda p: unsafe(p) * (1 - unsafe(p)) * beta.pdf(p, a, b), 0, 1)[0]
    assert resample_flip_rate(samples, unsafe_at, a, b) == pytest.approx(flipped / selected, rel=1e-6)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_one_further_sample_after_several_unsafe_ones(num: int) -> None:
    """Picked by `num` unsafe samples of `num`, a prompt is safe in a single further sample with b / (a + b + num)."""
    generator, a, b = np.random.default_rng(num), 1.0, 1.0
    p_unsafe = generator.beta(a, b, 200_000)
    selected = p_unsafe[(generator.random((num, p_unsafe.size)) < p_unsafe).all(axis=0)]
    assert (generator.random(selected.size) >= selected).mean() == pytest.approx(b / (a + b + num), abs=0.01)


def test_more_samples_at_the_same_share_flip_less() -> None:
    rates = [resample_flip_rate(samples, (samples + 1) // 2) for samples in (1, 3, 7, 31, 301)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05


@pytest.mark.parametrize("given", [(1, 2), (3, 0), (3, 2, 0.0, 1.0)])
def test_impossible_rules_are_refused(given: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= unsafe_at <= samples"):
        resample_flip_rate(*given)
