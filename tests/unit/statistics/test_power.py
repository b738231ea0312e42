"""The power of the paired test: the formula's own numbers, its inverse, and what a simulation finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.statistics.paired import mcnemar_mid_p
from flipsearch.statistics.power import detectable_difference, pairs_needed


def test_a_case_worked_by_hand() -> None:
    """(1.95996 sqrt(0.2) + 0.84162 sqrt(0.2 - 0.01))^2 / 0.01 = (0.87652 + 0.36685)^2 / 0.01 = 154.6."""
    assert pairs_needed(0.1, 0.2) == 155
    assert pairs_needed(0.05, 0.2) == 626


@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0), st.floats(0.5, 0.99))
def test_the_detectable_difference_needs_just_these_pairs(delta: float, discordant: float, power: float) -> None:
    discordant = max(delta, discordant)
    num = pairs_needed(delta, discordant, power=power)
    found = detectable_difference(num, discordant, power=power)
    assert found is not None
    assert found <= delta + 1e-9
    assert pairs_needed(found, max(found, discordant), power=power) in (num, num + 1)  # rounding at the edge


def test_more_pairs_tell_smaller_differences() -> None:
    found = [detectable_difference(num, 0.2) for num in (10, 30, 100, 300, 1000)]
    assert found == sorted(found, key=lambda one: -(one or 0))
    assert detectable_difference(3, 0.2) is None
    assert detectable_difference(0, 0.2) is None


@pytest.mark.parametrize(("delta", "discordant"), [(0.1, 0.2), (0.05, 0.1), (0.15, 0.3)])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_test_finds_the_difference_as_often_as_promised(delta: float, discordant: float, power: float) -> None:
    num = pairs_needed(delta, discordant, power=power)
    generator = np.random.default_rng(0)
    shares = [(discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant]
    tables = generator.multinomial(num, shares, size=4000)
    found = np.mean([mcnemar_mid_p(int(first), int(second)) < 0.05 for first, second, _ in tables])
    assert found == pytest.approx(power, abs=0.03)


@pytest.mark.parametrize(("delta", "discordant"), [(0.0, 0.2), (0.3, 0.2), (0.3, 1.2)])
def test_impossible_shares(delta: float, discordant: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < delta <= discordant <= 1"):
        pairs_needed(delta, discordant)


def test_impossible_errors() -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha < power < 1"):
        pairs_needed(0.1, 0.2, power=1.0)
    with pytest.raises(ValueError, match="expected 0 < discordant <= 1"):
        detectable_difference(10, 0.0)
