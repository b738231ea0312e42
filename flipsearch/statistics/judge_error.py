"""What a judge's errors do to a rate, taken back: from its measured accuracy, or from answers that people labelled.

    apparent table = M true table M^T,   M = [[Se, 1 - Sp], [1 - Se, Sp]]

A judge that calls a share Se of the unsafe answers unsafe, and a share Sp of the safe ones safe, turns the true table
of (without context, under it) into the one that is seen, if it errs on the two answers of a prompt independently, and
as often as where it was measured. Turned round this is Rogan and Gladen's estimator for pairs (1978,
doi:10.1093/oxfordjournals.aje.a112510).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.records import Estimate
from flipsearch.statistics.agreement import LEVEL, Share
from flipsearch.statistics.intervals import mean_interval

NUM_DRAWS = 20_000
"""Of sensitivity, specificity and table together, with a fixed seed."""
PRIOR = 0.5
"""Jeffreys' count, added to each side of a share; a quarter of it to each cell of a table of pairs."""

Floats = NDArray[np.float64]
Pairs = tuple[int, int, int, int]
"""Scored harmful prompts: unsafe before and after, unsafe then safe, safe then unsafe, safe both times."""


def corrected_flip_rate(pairs: Pairs, sensitivity: Share, specificity: Share) -> Estimate:
    """Return flips / prompts that are truly unsafe without context, from the pairs as judged; n is the judged ones.

    The value is the turned-round table's, cells below 0 set to 0. The interval holds 95 % of it over draws of the table
    (Dirichlet) and of both accuracies (beta, at their effective n): the judge's own uncertainty is in it. A judge that
    tells nothing (Se + Sp <= 1), or a table that is empty or without unsafe prompts, gives None and [0, 1].
    """
    table, n = np.array(pairs, dtype=float), pairs[0] + pairs[1]
    told = sensitivity.estimate.value, specificity.estimate.value
    if n == 0 or None in told:
        return Estimate(None, 0.0, 1.0, n)
    value = float(_flip_rate(table, np.array(told[0]), np.array(told[1])))
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(table + PRIOR / 2, NUM_DRAWS)
    rates = _flip_rate(tables, _draws(rng, sensitivity), _draws(rng, specificity))
    known = rates[~np.isnan(rates)]
    if np.isnan(value) or len(known) < NUM_DRAWS / 2:
        return Estimate(None, 0.0, 1.0, n)
    low, high = np.percentile(known, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def _draws(rng: np.random.Generator, share: Share) -> Floats:
    assert share.estimate.value is not None
    hits = share.estimate.value * share.effective_n
    found: Floats = rng.beta(hits + PRIOR, share.effective_n - hits + PRIOR, NUM_DRAWS)
    return found


def _flip_rate(tables: Floats, sensitivity: Floats, specificity: Floats) -> Floats:
    """Flip rates of (…, 4) tables as judged; nan where the judge tells nothing or no prompt is left unsafe."""
    seen = tables.reshape(*tables.shape[:-1], 2, 2)
    informed = sensitivity + specificity - 1
    safe_scale = np.where(informed > 0, informed, np.nan)
    turned = np.empty((*sensitivity.shape, 2, 2))
    turned[..., 0, 0], turned[..., 0, 1] = specificity, specificity - 1
    turned[..., 1, 0], turned[..., 1, 1] = sensitivity - 1, sensitivity
    turned /= safe_scale[..., None, None]
    true = np.clip(turned @ seen @ np.swapaxes(turned, -1, -2), 0, None)
    stays, flips = true[..., 0, 0], true[..., 0, 1]
    whole = stays + flips
    found: Floats = np.divide(flips, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return found


def prediction_powered_mean(
    judged: Sequence[float], labelled: Sequence[float | None], probability: Sequence[float]
) -> Estimate:
    """Return the mean over all prompts of what people would say, from the judge on all and people on some of them.

    Prompt i was put before people with `probability[i]`, independently of the others; `labelled[i]` is their value,
    None where nobody was asked. Each prompt then counts judged + asked * (labelled - judged) / probability, which is
    right on average whatever the judge says: its errors make the interval wide, never the value wrong. Values lie in
    [-1, 1].
    Source: the difference estimator of Cassel, Särndal and Wretman (1976, doi:10.1093/biomet/63.3.615), in machine
    learning prediction-powered inference (Angelopoulos et al. 2023, doi:10.1126/science.adi6000).
    ValueError for unequal lengths, or a labelled prompt with a probability outside (0, 1].
    """
    counted = []
    for said, people, chance in zip(judged, labelled, probability, strict=True):
        if people is not None and not 0 < chance <= 1:
            raise ValueError(f"expected a probability in (0, 1], got {chance}.")
        counted.append(said if people is None else said + (people - said) / chance)
    reach = max([1.0, *map(abs, counted)])
    found = mean_interval(counted, -reach, reach)
    value = None if found.value is None else min(1.0, max(-1.0, found.value))
    return Estimate(value, max(-1.0, found.low), min(1.0, found.high), found.n)
