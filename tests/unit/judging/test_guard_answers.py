"""Whatever a guard's probabilities are, what cannot be read is never a decision."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.judging.guard.prompts import MIN_MASS, Decision, decide

ANY_NUMBER = st.floats(allow_nan=True, allow_infinity=True)
PROBABILITY = st.floats(min_value=1e-9, max_value=1)


def test_probabilities_are_taken_among_the_answers_and_the_mass_is_kept() -> None:
    decision = decide([(math.log(0.6), math.log(0.5)), (math.log(0.65),)])
    assert isinstance(decision, Decision)
    assert decision.mass == 0.95
    assert decision.probabilities == pytest.approx((0.3 / 0.95, 0.65 / 0.95))
    assert decision.likeliest == 1
    assert decision.mean([0, 1]) == round(0.65 / 0.95, 4)


@pytest.mark.parametrize(
    ("log_probs", "reason"),
    [
        ([(-3.0,), (-4.0,)], "label mass 0.0681 is below 0.9"),
        ([(-math.inf,), (-math.inf,)], "label mass 0.0000 is below 0.9"),
        ([(math.nan,), (-0.1,)], "no numbers"),
        ([(math.inf, -math.inf), (-0.1,)], "no numbers"),
        ([(0.5,), (-9.0,)], "above 1"),
        ([(math.inf,), (-9.0,)], "above 1"),
        ([(-0.1,), (-0.2,)], "more than 1"),
        ([], "label mass"),
    ],
)
def test_what_cannot_be_read_has_a_reason(log_probs: list[tuple[float, ...]], reason: str) -> None:
    found = decide(log_probs)
    assert isinstance(found, str)
    assert reason in found


@given(st.lists(st.lists(ANY_NUMBER, max_size=3), max_size=4), st.sampled_from([0.0, MIN_MASS]))
def test_any_numbers_give_a_reason_or_probabilities(log_probs: list[list[float]], min_mass: float) -> None:
    found = decide(log_probs, min_mass)
    if isinstance(found, str):
        assert found
    else:
        assert all(0 <= p <= 1 for p in found.probabilities)
        assert math.fsum(found.probabilities) == pytest.approx(1)
        assert min_mass <= found.mass <= 1
        assert 0 <= found.mean([1.0] * len(log_probs)) <= 1


@given(PROBABILITY, st.floats(min_value=0.91, max_value=1))
def test_what_a_guard_says_is_read_off_exactly(share: float, mass: float) -> None:
    found = decide([(math.log(mass * share),), (math.log(mass * (1 - share) + 1e-300),)])
    assert isinstance(found, Decision)
    assert found.mean([1.0, 0.0]) == pytest.approx(share, abs=1e-4)
    assert found.mass == pytest.approx(mass, abs=1e-4)
