"""Which figure of a context predicts harm after training best, by rank correlation over few contexts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test, rankdata

from flipsearch.core.measurements import Estimate
from flipsearch.core.sweeps import PREDICTORS, Prediction, SweepGroup, SweepRun, SweptContext
from flipsearch.statistics.intervals import Floats

LEAST_CONTEXTS = 4
"""Fewer have no rank correlation worth a number."""
NUM_PERMUTATIONS = 10_000
"""Up to 7 items, whose permutations are fewer, the test is exact."""
NUM_RESAMPLES = 2_000


def groups_of(
    methods: Sequence[str], data_sizes: Sequence[float], contexts: Sequence[SweptContext], runs: Sequence[SweepRun]
) -> Iterator[SweepGroup]:
    """Yield what predicts harm, for each method and share of the data."""
    for method, data_share in product(methods, dict.fromkeys(data_sizes)):
        harms: dict[str, dict[int, float]] = {}
        for run in runs:
            if (run.method, run.data_share) == (method, data_share) and run.harm is not None:
                harms.setdefault(run.context_id, {})[run.seed] = run.harm
        trained = [(swept, harms[id]) for swept in contexts if (id := swept.context.context_id) in harms]
        is_enough = len(trained) >= LEAST_CONTEXTS
        yield SweepGroup(method, data_share, tuple(predictions(trained)) if is_enough else ())


def predictions(trained: Sequence[tuple[SweptContext, Mapping[int, float]]]) -> list[Prediction]:
    """Return how each figure of the contexts predicts their harm by seed, the best first."""
    by_name: dict[str, Prediction] = {}
    seeds = sorted({seed for _, harm in trained for seed in harm})
    for name in PREDICTORS:
        pairs = [(value, harm) for swept, harm in trained if (value := swept.predictor(name)) is not None]
        values, means = [value for value, _ in pairs], [fmean(harm.values()) for _, harm in pairs]
        by_seed = []
        for seed in seeds:
            of_seed = [(value, harm[seed]) for value, harm in pairs if seed in harm]
            by_seed.append(spearman(*zip(*of_seed, strict=True)) if len(of_seed) >= LEAST_CONTEXTS else None)
        is_enough = len(pairs) >= LEAST_CONTEXTS
        value, p_value = (spearman(values, means), permutation_p(values, means)) if is_enough else (None, None)
        by_name[name] = Prediction(name, len(pairs), value, p_value, tuple(by_seed), None)
    best, *others = sorted(by_name.values(), key=lambda prediction: -abs(prediction.spearman or 0.0))
    compared = []
    for other in others:
        shared = [
            (first, second, list(harm.values()))
            for swept, harm in trained
            if (first := swept.predictor(best.predictor)) is not None
            and (second := swept.predictor(other.predictor)) is not None
        ]
        if len(shared) >= LEAST_CONTEXTS and other.spearman is not None:
            firsts, seconds, outcomes = zip(*shared, strict=True)
            figures = {best.predictor: firsts, other.predictor: seconds}
            other = replace(other, behind_best=behind_best(figures, best.predictor, outcomes)[other.predictor])
        compared.append(other)
    return [best, *compared]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation; None where one side is all ties."""
    value = float(_correlations(first, second))
    return None if np.isnan(value) else value


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the rank correlation over permutations of the items; None for ties alone."""
    if spearman(first, second) is None:
        return None
    tested = permutation_test(
        (np.asarray(first),),
        lambda values, axis: _correlations(values, second),
        permutation_type="pairings",
        n_resamples=NUM_PERMUTATIONS,
        vectorized=True,
        random_state=0,
    )
    return min(1.0, float(tested.pvalue))


def behind_best(
    predictors: Mapping[str, Sequence[float]], best: str, outcomes: Sequence[Sequence[float]]
) -> dict[str, Estimate]:
    """Return how much stronger the correlation of `best` is than each other's, with a bootstrap interval.

    `outcomes` holds the repeats of each item: items are resampled, and within them repeats. Stronger means further in
    the direction that a figure's own correlation has. Resamples in which anything is all ties are left out; with few
    items the interval is rough.
    """
    rng, num = np.random.default_rng(0), len(outcomes)
    items = rng.integers(num, size=(NUM_RESAMPLES, num))
    repeats = [rng.choice(row, size=(NUM_RESAMPLES, num, len(row))).mean(axis=-1) for row in outcomes]
    sampled = np.stack(repeats)[items, *np.indices(items.shape)]
    means = [float(np.mean(row)) for row in outcomes]

    def strengths(name: str) -> tuple[float, Floats]:
        own = spearman(predictors[name], means) or 0.0
        direction = 1.0 if own >= 0 else -1.0
        return abs(own), direction * _correlations(np.asarray(predictors[name])[items], sampled)

    top, top_sampled = strengths(best)
    shown = {}
    for name in predictors.keys() - {best}:
        own, own_sampled = strengths(name)
        differences = (top_sampled - own_sampled)[~np.isnan(top_sampled - own_sampled)]
        low, high = np.percentile(differences, (2.5, 97.5)) if len(differences) else (-2.0, 2.0)
        shown[name] = Estimate(top - own, float(low), float(high), num)
    return shown


def _correlations(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return Spearman's correlation along the last axis; NaN where one side is all ties."""
    left, right = (_centred_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    lengths = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    products = (left * right).sum(axis=-1)
    values = np.divide(products, lengths, out=np.full_like(products, np.nan), where=lengths > 0)
    rounded: Floats = np.round(values, 12)  # equal correlations of two permutations must count as equal
    return rounded


def _centred_ranks(values: Floats) -> Floats:
    ranks: Floats = rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2
    return ranks
