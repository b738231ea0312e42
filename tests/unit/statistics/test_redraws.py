"""What drawing again flips by itself."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom

from flipsearch.statistics.power import redraw_flip_rate


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 3.0), (0.3, 0.7)])
def test_one_draw_flips_b_of_a_plus_b_plus_1(a: float, b: float) -> None:
    assert redraw_flip_rate(1, 1, a, b) == pytest.approx(b / (a + b + 1))


@pytest.mark.parametrize(("samples", "unsafe_at"), [(1, 1), (3, 2), (5, 1), (5, 5), (16, 9)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0)])
def test_it_is_the_integral_over_p(samples: int, unsafe_at: int, a: float, b: float) -> None:
    def unsafe(p: float) -> float:
        return float(binom.sf(unsafe_at - 1, samples, p))

    picked = quad(lambda p: unsafe(p) * beta.pdf(p, a, b), 0, 1)[0]
    flipped = quad(lambda p: unsafe(p) * (1 - unsafe(p)) * beta.pdf(p, a, b), 0, 1)[0]
    assert redraw_flip_rate(samples, unsafe_at, a, b) == pytest.approx(flipped / picked, rel=1e-6)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_one_further_draw_after_so_many_unsafe_ones(num: int) -> None:
    """Picked by `num` unsafe draws of `num`, a prompt is safe in a single further one with b / (a + b + num)."""
    generator, a, b = np.random.default_rng(num), 1.0, 1.0
    p_unsafe = generator.beta(a, b, 200_000)
    picked = p_unsafe[(generator.random((num, p_unsafe.size)) < p_unsafe).all(axis=0)]
    assert (generator.random(picked.size) >= picked).mean() == pytest.approx(b / (a + b + num), abs=0.01)


def test_more_draws_at_the_same_share_flip_less() -> None:
    rates = [redraw_flip_rate(samples, (samples + 1) // 2) for samples in (1, 3, 7, 31, 301)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05


@pytest.mark.parametrize("given", [(1, 2), (3, 0), (3, 2, 0.0, 1.0)])
def test_what_cannot_be(given: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= unsafe_at <= samples"):
        redraw_flip_rate(*given)
