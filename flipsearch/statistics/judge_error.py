"""Rates corrected for a judge's errors: from its measured accuracy, or from human labels on some of the answers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.records import Estimate
from flipsearch.statistics.agreement import Share
from flipsearch.statistics.intervals import LEVEL, mean_interval

NUM_RESAMPLES = 20_000
"""Of sensitivity, specificity and table together, with a fixed seed."""
PRIOR = 0.5
"""Jeffreys' count, added to each side of a share; a quarter of it to each cell of a table of pairs."""

Floats = NDArray[np.float64]
Pairs = tuple[int, int, int, int]
"""Scored harmful prompts: unsafe before and after, unsafe then safe, safe then unsafe, safe both times."""


def corrected_flip_rate(pairs: Pairs, sensitivity: Share, specificity: Share) -> Estimate:
    """Return flips / prompts that are truly unsafe without context, from the pairs as judged; n is the judged ones.

        apparent table = M true table M^T,   M = [[Se, 1 - Sp], [1 - Se, Sp]]

    A judge with sensitivity Se and specificity Sp turns the true table of (without context, under it) into the apparent
    one, if its errors on the two answers of a prompt are independent, and as frequent as where they were measured.
    Inverted this is Rogan and Gladen's estimator for pairs (1978, doi:10.1093/oxfordjournals.aje.a112510), with cells
    below 0 set to 0. The interval holds 95 % of it over samples of the table (Dirichlet) and of both accuracies (beta,
    at their effective n), and so includes the judge's own uncertainty. An uninformative judge (Se + Sp <= 1), or a
    table that is empty or without unsafe prompts, gives None and [0, 1].
    """
    table, n = np.array(pairs, dtype=float), pairs[0] + pairs[1]
    se, sp = sensitivity.estimate.value, specificity.estimate.value
    if n == 0 or se is None or sp is None:
        return Estimate(None, 0.0, 1.0, n)
    value = float(_flip_rate(table, np.array(se), np.array(sp)))
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(table + PRIOR / 2, NUM_RESAMPLES)
    accuracies = []
    for share, accuracy in ((se, sensitivity), (sp, specificity)):
        hits = share * accuracy.effective_n
        accuracies.append(rng.beta(hits + PRIOR, accuracy.effective_n - hits + PRIOR, NUM_RESAMPLES))
    rates = _flip_rate(tables, *accuracies)
    known = rates[~np.isnan(rates)]
    if np.isnan(value) or len(known) < NUM_RESAMPLES / 2:
        return Estimate(None, 0.0, 1.0, n)
    low, high = np.percentile(known, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def _flip_rate(tables: Floats, sensitivity: Floats, specificity: Floats) -> Floats:
    """Return the true flip rates (...,) of apparent tables (..., 4); nan if uninformative or without unsafe prompts."""
    apparent = tables.reshape(*tables.shape[:-1], 2, 2)
    informedness = sensitivity + specificity - 1
    inverse = np.empty((*sensitivity.shape, 2, 2))
    inverse[..., 0, 0], inverse[..., 0, 1] = specificity, specificity - 1
    inverse[..., 1, 0], inverse[..., 1, 1] = sensitivity - 1, sensitivity
    inverse /= np.where(informedness > 0, informedness, np.nan)[..., None, None]
    true = np.clip(inverse @ apparent @ np.swapaxes(inverse, -1, -2), 0, None)
    flips = true[..., 0, 1]
    unsafe = true[..., 0, 0] + flips
    rates: Floats = np.divide(flips, unsafe, out=np.full_like(unsafe, np.nan), where=unsafe > 0)
    return rates


def prediction_powered_mean(
    judged: Sequence[float], labelled: Sequence[float | None], probability: Sequence[float]
) -> Estimate:
    """Return the mean human label over all prompts, from the judge on all of them and human labels on some.

    Prompt i was given to annotators with `probability[i]`, independently of the others; `labelled[i]` is their value,
    None if it was not given. Each prompt then counts judged + given * (labelled - judged) / probability, which is
    unbiased whatever the judge says: its errors widen the interval and never bias the value. Values lie in [-1, 1].
    Source: the difference estimator of Cassel, Särndal and Wretman (1976, doi:10.1093/biomet/63.3.615), in machine
    learning prediction-powered inference (Angelopoulos et al. 2023, doi:10.1126/science.adi6000).
    ValueError for unequal lengths, or a labelled prompt with a probability outside (0, 1].
    """
    values = []
    for verdict, label, chance in zip(judged, labelled, probability, strict=True):
        if label is not None and not 0 < chance <= 1:
            raise ValueError(f"expected a probability in (0, 1], got {chance}.")
        values.append(verdict if label is None else verdict + (label - verdict) / chance)
    reach = max([1.0, *map(abs, values)])
    mean = mean_interval(values, -reach, reach)
    value = None if mean.value is None else min(1.0, max(-1.0, mean.value))
    return Estimate(value, max(-1.0, mean.low), min(1.0, mean.high), mean.n)
