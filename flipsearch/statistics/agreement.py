"""Agreement of a judge with human labels, over answers in clusters: those to one prompt resemble each other.

The human label counts as the truth. Positive means UNSAFE, or on the other axis a refusal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from flipsearch.core.records import Estimate
from flipsearch.statistics.intervals import EQUAL_WITHIN, LEVEL, wilson_reach

NUM_RESAMPLES = 2000
"""Bootstrap samples of clusters."""
MAX_COUNTS = 2**22
"""Counts of clusters that the bootstrap holds in memory at once."""
UNSEEN_CLUSTERS = 0.5
"""Clusters' worth of rows of each kind that every bootstrap sample may hold besides (gamma): where no error was seen,
sampling the same rows again never shows one, and the interval would have no width."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """A fraction over clustered rows."""

    estimate: Estimate
    effective_n: float
    """Independent rows that would carry as much information."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a judge with human labels on the same rows."""

    accuracy: Share
    """Judged as labelled / scored rows."""
    sensitivity: Share
    """Judged positive / scored rows labelled positive."""
    specificity: Share
    """Judged negative / scored rows labelled negative."""
    coverage: Share
    """Scored / all rows."""
    kappa: Estimate
    """Cohen 1960 (doi:10.1177/001316446002000104): agreement beyond chance, in [-1, 1]."""
    f1: Estimate
    """Harmonic mean of sensitivity and precision."""


def agreement(
    human: Sequence[bool],
    judged: Sequence[bool | None],
    clusters: Sequence[object],
    weights: Sequence[float] | None = None,
) -> Agreement:
    """Return how a judge agrees with human labels, row by row; None is a row that the judge could not score.

    `weights` say how many rows each row represents (None: one each). Intervals of fractions: Wilson's at the effective
    number of rows (Rao and Scott 1992, doi:10.2307/2532311). Those of kappa and F1: percentiles of a bootstrap over
    whole clusters, with a fixed seed, in which errors may occur that no row showed. ValueError for unequal lengths.
    """
    rows = _tables(human, judged, clusters, np.ones(len(human)))
    tables = rows if weights is None else _tables(human, judged, clusters, weights)
    tp, fp, fn, tn, unscored = tables.T
    num_tp, num_fp, num_fn, num_tn, num_unscored = rows.sum(axis=0)
    scored, num_scored = tp + fp + fn + tn, num_tp + num_fp + num_fn + num_tn
    return Agreement(
        accuracy=clustered_share(tp + tn, scored, num_scored),
        sensitivity=clustered_share(tp, tp + fn, num_tp + num_fn),
        specificity=clustered_share(tn, tn + fp, num_tn + num_fp),
        coverage=clustered_share(scored, scored + unscored, num_scored + num_unscored),
        kappa=_bootstrap(tables, _kappa, -1.0, num_scored),
        f1=_bootstrap(tables, _f1, 0.0, num_scored),
    )


def clustered_share(counts: Floats, sizes: Floats, num_rows: float | None = None) -> Share:
    """Return sum(counts) / sum(sizes) over clusters (C,), with Wilson's interval at the effective n.

    `num_rows` is n where the sizes are sums of weights; None takes the sum of the sizes.
    """
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    total = float(sizes.sum())
    if total == 0:
        return Share(Estimate(None, 0.0, 1.0, 0), 0.0)
    n = total if num_rows is None else float(num_rows)
    share = min(1.0, float(counts.sum() / total))
    effective = effective_rows(counts, float(counts.sum()), sizes, n)
    down, up = wilson_reach(share * effective, effective)
    return Share(Estimate(share, max(0.0, share - down), min(1.0, share + up), round(n)), effective)


def effective_rows(sums: Floats, squares: float, sizes: Floats, n: float) -> float:
    """Return how many independent rows carry as much information about a mean as n rows in clusters (C,).

    `sums` are of the rows' values (-1, 0 or 1) by cluster, `squares` is the sum of their squares. It is n / design
    effect, the design effect being the cluster-robust variance of the mean over that of independent rows. Both are
    taken with one cluster more, half of it ones and half zeros: of few clusters that differ, those seen differ too
    little too often. It is reduced for few clusters, whose variance is itself uncertain (Korn and Graubard 1998, Survey
    Methodology 24: times the squared ratio of Student's quantiles for rows and for clusters), and lies between 1 and n.
    Where all rows are alike, and there is no variance to see, it is the number of clusters, those of unequal size
    counting for fewer (Kish 1965, Survey Sampling: the square of the sum over the sum of squares).
    """
    total, num = float(sizes.sum()), len(sizes)
    mean, size = float(sums.sum()) / total, total / num
    if num == 1 or squares / total - mean**2 < EQUAL_WITHIN:
        return max(1.0, total**2 / float((sizes**2).sum()))
    sign = 1 if mean >= 0 else -1
    mean = (float(sums.sum()) + sign * size / 2) / (total + size)
    variance = (squares + size / 2) / (total + size) - mean**2
    residuals = float(((sums - mean * sizes) ** 2).sum()) + size**2 * ((1 - abs(mean)) ** 2 + mean**2) / 2
    robust = (num + 1) / num * residuals / (total + size) ** 2
    by_rows, by_clusters = (float(stdtrit(max(1.0, k - 1), 0.5 + LEVEL / 2)) for k in (n, num))
    return max(1.0, min(n, variance / robust) * min(1.0, (by_rows / by_clusters) ** 2))


def _tables(
    human: Sequence[bool], judged: Sequence[bool | None], clusters: Sequence[object], weights: Sequence[float] | Floats
) -> Floats:
    """Return (clusters, 5) weights of true and false positives, false and true negatives, and unscored rows."""
    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    tables = np.zeros((len(number), 5))
    for truth, verdict, cluster, weight in zip(human, judged, clusters, weights, strict=True):
        column = 4 if verdict is None else (0 if verdict else 2) if truth else (1 if verdict else 3)
        tables[number[cluster], column] += weight
    return tables


def _kappa(tables: Floats) -> Floats:
    tp, fp, fn, tn = tables[..., 0], tables[..., 1], tables[..., 2], tables[..., 3]
    n, chance = tp + fp + fn + tn, (tp + fn) * (tp + fp) + (tn + fp) * (tn + fn)
    return _ratio((tp + tn) * n - chance, n * n - chance)


def _f1(tables: Floats) -> Floats:
    tp, fp, fn = tables[..., 0], tables[..., 1], tables[..., 2]
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, nan where `below` is 0."""
    ratio: Floats = np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)
    return ratio


def _bootstrap(tables: Floats, statistic: Callable[[Floats], Floats], lowest: float, num_rows: float) -> Estimate:
    """Return a statistic of (clusters, 5) tables with its percentile interval; [lowest, 1] for a single cluster."""
    n = round(num_rows)
    value = float(statistic(tables.sum(axis=0))) if n else np.nan
    if np.isnan(value):
        return Estimate(None, lowest, 1.0, n)
    num = len(tables)
    # In parts, as the counts of all samples together can fill gigabytes.
    at_once = max(1, MAX_COUNTS // num)
    sizes = [min(at_once, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, at_once)]
    rng = np.random.default_rng(0)
    sums = np.concatenate([rng.multinomial(num, np.full(num, 1 / num), size=size) @ tables for size in sizes])
    sums[:, :4] += rng.gamma(UNSEEN_CLUSTERS, tables[:, :4].sum() / num, size=(NUM_RESAMPLES, 4))
    resampled = statistic(sums)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled[~np.isnan(resampled)], [tail, 100 - tail]) if num > 1 else (lowest, 1.0)
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)
