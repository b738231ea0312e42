"""How well a judge agrees with people, over answers that come in clusters: those to one prompt resemble each other.

The people's word counts as the truth. Positive means UNSAFE, or on the other axis a refusal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from flipsearch.core.records import Estimate
from flipsearch.statistics.intervals import two_sided_z

NUM_REDRAWS = 2000
"""Bootstrap samples of clusters."""
MOST_DRAWN = 2**22
"""Counts of clusters held at once by the bootstrap."""
UNSEEN = 0.5
"""Clusters' worth of rows of each kind that every redraw may hold besides (gamma): where no error was seen, drawing the
same rows again never shows one, and the interval would have no width."""
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """A fraction over clustered rows."""

    estimate: Estimate
    """With its 95 % interval; n counts rows."""
    effective_n: float
    """Independent rows that would tell as much."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge beside people on the same rows."""

    accuracy: Share
    """Judged as people do / scored rows."""
    sensitivity: Share
    """Called positive / scored rows that people call so."""
    specificity: Share
    """Called negative / scored rows that people call so."""
    coverage: Share
    """Scored / all rows."""
    kappa: Estimate
    """Cohen 1960 (doi:10.1177/001316446002000104): agreement beyond chance, in [-1, 1]."""
    f1: Estimate
    """Harmonic mean of sensitivity and precision."""


def agreement(
    people: Sequence[bool],
    judged: Sequence[bool | None],
    clusters: Sequence[object],
    weights: Sequence[float] | None = None,
) -> Agreement:
    """Return how a judge agrees with people, row by row; None is a row that it could not score.

    `weights` say for how many rows each stands (all for one). Intervals of fractions: Wilson's at the effective number
    of rows (Rao and Scott 1992, doi:10.2307/2532311). Those of kappa and F1: percentiles of a bootstrap over whole
    clusters, with a fixed seed, in which errors may show that the rows did not. ValueError for unequal lengths.
    """
    rows = _tables(people, judged, clusters, np.ones(len(people)))
    tables = rows if weights is None else _tables(people, judged, clusters, weights)
    # (clusters, 5): true and false positives and negatives, unscored
    tp, fp, fn, tn, unscored = tables.T
    num_tp, num_fp, num_fn, num_tn, num_unscored = rows.sum(axis=0)
    scored, num_scored = tp + fp + fn + tn, num_tp + num_fp + num_fn + num_tn
    return Agreement(
        accuracy=clustered_share(tp + tn, scored, num_scored),
        sensitivity=clustered_share(tp, tp + fn, num_tp + num_fn),
        specificity=clustered_share(tn, tn + fp, num_tn + num_fp),
        coverage=clustered_share(scored, scored + unscored, num_scored + num_unscored),
        kappa=_bootstrapped(tables, _kappa, -1.0, num_scored),
        f1=_bootstrapped(tables, _f1, 0.0, num_scored),
    )


def clustered_share(counts: Floats, sizes: Floats, num_rows: float | None = None) -> Share:
    """Return sum(counts) / sum(sizes) over clusters, with Wilson's interval at the effective n.

    The effective n is n / design effect, the design effect being the cluster-robust variance over the binomial one,
    less for few clusters, whose variance is itself uncertain (Korn and Graubard 1998, Survey Methodology 24: times the
    squared ratio of Student's quantiles for rows and for clusters). It is never more than n; where all rows are alike,
    and there is no variance to see, it is the number of clusters, those of unequal size counting for fewer (Kish 1965,
    Survey Sampling: the square of the sum over the sum of squares); one cluster is one row.
    `num_rows` is n where the sizes are sums of weights; None takes the sum of the sizes.
    """
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    whole, num = float(sizes.sum()), len(sizes)
    if whole == 0:
        return Share(Estimate(None, 0.0, 1.0, 0), 0.0)
    n = whole if num_rows is None else float(num_rows)
    share = min(1.0, float(counts.sum() / whole))
    binomial = share * (1 - share) / n
    robust = num / max(1, num - 1) * float(((counts - share * sizes) ** 2).sum()) / whole**2
    alike = whole**2 / float((sizes**2).sum())
    seen = n if robust == 0 else min(n, n * binomial / robust)
    effective = alike if binomial == 0 or num == 1 else seen * _few(n, num)
    return Share(_wilson(share, max(1.0, effective), round(n)), max(1.0, effective))


def _few(n: float, num_clusters: int) -> float:
    """What the uncertainty of the variance leaves of the effective n; 1 where each row is a cluster."""
    by_rows, by_clusters = (float(student_t.ppf(0.5 + LEVEL / 2, max(1.0, num - 1))) for num in (n, num_clusters))
    return min(1.0, (by_rows / by_clusters) ** 2)


def _wilson(share: float, effective: float, n: int) -> Estimate:
    z = two_sided_z(LEVEL)
    middle = (share + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * (share * (1 - share) / effective + (z / (2 * effective)) ** 2) ** 0.5 / (1 + z * z / effective)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), n)


def _tables(
    people: Sequence[bool], judged: Sequence[bool | None], clusters: Sequence[object], weights: Sequence[float] | Floats
) -> Floats:
    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    tables = np.zeros((len(number), 5))
    for truth, said, cluster, weight in zip(people, judged, clusters, weights, strict=True):
        column = 4 if said is None else (0 if said else 2) if truth else (1 if said else 3)
        tables[number[cluster], column] += weight
    return tables


def _kappa(tables: Floats) -> Floats:
    tp, fp, fn, tn = tables[..., 0], tables[..., 1], tables[..., 2], tables[..., 3]
    n = tp + fp + fn + tn
    agreed = (tp + tn) * n
    chance = (tp + fn) * (tp + fp) + (tn + fp) * (tn + fn)
    return _ratio(agreed - chance, n * n - chance)


def _f1(tables: Floats) -> Floats:
    tp, fp, fn = tables[..., 0], tables[..., 1], tables[..., 2]
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)
    return found


def _bootstrapped(tables: Floats, statistic: Callable[[Floats], Floats], lowest: float, num_rows: float) -> Estimate:
    n = round(num_rows)
    value = float(statistic(tables.sum(axis=0))) if n else np.nan
    if np.isnan(value):
        return Estimate(None, lowest, 1.0, n)
    redrawn = statistic(_redrawn(tables))
    told = redrawn[~np.isnan(redrawn)]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(told, [tail, 100 - tail]) if len(tables) > 1 else (lowest, 1.0)
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def _redrawn(tables: Floats) -> Floats:
    """(NUM_REDRAWS, 5) sums of as many clusters drawn again; a part at a time, as all draws fill gigabytes."""
    num = len(tables)
    at_once = max(1, MOST_DRAWN // num)
    rng, sizes = np.random.default_rng(0), [min(at_once, NUM_REDRAWS - i) for i in range(0, NUM_REDRAWS, at_once)]
    drawn = np.concatenate([rng.multinomial(num, np.full(num, 1 / num), size=size) @ tables for size in sizes])
    drawn[:, :4] += rng.gamma(UNSEEN, tables[:, :4].sum() / num, size=(NUM_REDRAWS, 4))
    return drawn
