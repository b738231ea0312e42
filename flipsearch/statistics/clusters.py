"""Rates and paired differences over prompts in clusters: paraphrases and wrappers of one request resemble each other.

Taken for independent prompts they make an interval too narrow: at an intraclass correlation of .5 in groups of four,
Wilson's and Newcombe's cover 73 to 84 % instead of 95. Here both are taken at the effective number of prompts. Where
every prompt is a cluster of its own they are the plain ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.records import Difference, Rate
from flipsearch.statistics.agreement import clustered_share, effective_rows
from flipsearch.statistics.intervals import wilson
from flipsearch.statistics.paired import mcnemar_mid_p, newcombe, paired_difference


def clustered_rate(hits: Sequence[bool], clusters: Sequence[str]) -> Rate:
    """Return the share of hits with its interval; `clusters` has one name per row."""
    if len(set(clusters)) == len(hits):
        return wilson(sum(hits), len(hits))
    sizes, (counts,) = _sums(clusters, hits)
    share = clustered_share(counts, sizes).estimate
    return Rate(sum(hits), len(hits), share.low, share.high)


def clustered_difference(first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str]) -> Difference:
    """Return rate(first) - rate(second) over the same n >= 1 prompts, with interval and p-value.

    Newcombe's interval from the paired table at the effective number of pairs, by the cluster-robust variance of the
    difference; the test flips the signs of whole clusters. ValueError for unequal lengths or no pairs.
    """
    if len(set(clusters)) == len(clusters):
        return paired_difference(first, second)
    left, right = np.array(first, dtype=bool), np.array(second, dtype=bool)
    cells = [left & right, left & ~right, ~left & right, ~left & ~right]
    sizes, sums = _sums(clusters, *cells)
    n, (both, only_first, only_second, neither) = len(left), map(sum, sums)
    value, differences = (only_first - only_second) / n, sums[1] - sums[2]
    scale = effective_rows(differences, only_first + only_second, sizes, n) / n
    low, high = newcombe(scale * both, scale * only_first, scale * only_second, scale * neither)
    return Difference(float(value), min(low, value), max(high, value), n, sign_flip_mid_p(differences.astype(int)))


def sign_flip_mid_p(differences: Sequence[int] | NDArray[np.int_]) -> float:
    """Return the two-sided mid-p value of "each cluster's difference is as likely as its negative".

    Exact, from all signs of the clusters; with one prompt in each it is McNemar's.
    """
    sizes = [abs(int(difference)) for difference in differences if difference]
    observed, total = abs(int(sum(differences))), sum(sizes)
    if max(sizes, default=1) == 1:
        return mcnemar_mid_p((total + observed) // 2, (total - observed) // 2)
    chances = np.ones(1)
    for size in sizes:
        chances = (np.pad(chances, (0, size)) + np.pad(chances, (size, 0))) / 2
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(chances[sums > observed].sum() + chances[sums == observed].sum() / 2)


def _sums(
    clusters: Sequence[str], *rows: Sequence[bool] | NDArray[np.bool_]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return the sizes of the clusters, and the sum of each of `rows` by cluster."""
    _, index = np.unique(np.array(clusters), return_inverse=True)
    return np.bincount(index).astype(float), [
        np.bincount(index, weights=np.asarray(row, dtype=float)).astype(float) for row in rows
    ]
