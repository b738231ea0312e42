"""Whatever a guard's probabilities are, invalid ones never become a decision."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.records import Label, Verdict
from flipsearch.judging.guard import MIN_MASS, GuardDecision, decide

ANY_NUMBER = st.floats(allow_nan=True, allow_infinity=True)
PROBABILITY = st.floats(min_value=1e-9, max_value=1)


def test_probabilities_are_relative_and_the_mass_is_kept() -> None:
    decision = decide([(math.log(0.6), math.log(0.5)), (math.log(0.65),)])
    assert isinstance(decision, GuardDecision)
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
def test_invalid_probabilities_are_unscored_with_a_reason(log_probs: list[tuple[float, ...]], reason: str) -> None:
    decision = decide(log_probs)
    assert isinstance(decision, Verdict)
    assert (decision.label, decision.failed) == (Label.UNSCORED, False)
    assert reason in decision.reason


@given(st.lists(st.lists(ANY_NUMBER, max_size=3), max_size=4), st.sampled_from([0.0, MIN_MASS]))
def test_any_numbers_give_a_reason_or_valid_probabilities(log_probs: list[list[float]], min_mass: float) -> None:
    decision = decide(log_probs, min_mass)
    if isinstance(decision, Verdict):
        assert decision.reason
    else:
        assert all(0 <= p <= 1 for p in decision.probabilities)
        assert math.fsum(decision.probabilities) == pytest.approx(1)
        assert min_mass <= decision.mass <= 1
        assert 0 <= decision.mean([1.0] * len(log_probs)) <= 1


@given(PROBABILITY, st.floats(min_value=0.91, max_value=1))
def test_probabilities_and_mass_are_exact(share: float, mass: float) -> None:
    decision = decide([(math.log(mass * share),), (math.log(mass * (1 - share) + 1e-300),)])
    assert isinstance(decision, GuardDecision)
    assert decision.mean([1.0, 0.0]) == pytest.approx(share, abs=1e-4)
    assert decision.mass == pytest.approx(mass, abs=1e-4)
