"""Agreement of a judge with human labels, and of figures of contexts with the harm after training.

Of a judge: its agreement, and rates corrected for its errors. The human label counts as the truth. Positive means
UNSAFE, or on the other axis a refusal. Answers come in clusters: those to one prompt resemble each other. Of figures:
which of them predicts harm best, by rank correlation over few contexts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test, rankdata

from flipsearch.core.measurements import Estimate
from flipsearch.core.sweeps import PREDICTORS, Prediction, SweepGroup, SweepRun, SweptContext
from flipsearch.statistics.intervals import LEVEL, Floats, effective_rows, mean_interval, wilson_reach

NUM_RESAMPLES = 2000
MAX_COUNTS = 2**22
"""Counts of clusters that the bootstrap holds in memory at once."""
UNSEEN_CLUSTERS = 0.5
"""Clusters' worth of rows of each kind that every bootstrap sample may hold besides (gamma): where no error was seen,
sampling the same rows again never shows one, and the interval would have no width."""
NUM_SIMULATED = 20_000
"""Of sensitivity, specificity and table together, with a fixed seed."""
PRIOR = 0.5
"""Jeffreys' count, added to each side of a share; a quarter of it to each cell of a table of pairs."""
LEAST_CONTEXTS = 4
"""Fewer have no rank correlation worth a number."""
NUM_PERMUTATIONS = 10_000
"""Up to 7 items, whose permutations are fewer, the test is exact."""


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


Pairs = tuple[int, int, int, int]
"""Scored harmful prompts: unsafe before and after, unsafe then safe, safe then unsafe, safe both times."""


def corrected_flip_rate(pairs: Pairs, sensitivity: Share, specificity: Share) -> Estimate:
    """Return flips / prompts that are truly unsafe without context, from the pairs as judged; n is the judged ones.

        apparent table = M true table M^T,   M = [[Se, 1 - Sp], [1 - Se, Sp]]

    A judge with sensitivity Se and specificity Sp turns the true table of (without context, under it) into the apparent
    one, if its errors on the two answers of a prompt are independent, and as frequent as where they were measured.
    Inverted this is Rogan and Gladen's estimator for pairs (1978, doi:10.1093/oxfordjournals.aje.a112510), with cells
    below 0 set to 0. The interval holds 95 % of it over samples of the table (Dirichlet) and of both accuracies (beta,
    at their effective n), and so includes the judge's own uncertainty. A judge that is not shown to be informative
    (Se + Sp > 1, by the lower end of its interval), or a table that is empty or without unsafe prompts, gives None and
    [0, 1]: near chance the cells below 0 would leave an interval without width.
    """
    table, n = np.array(pairs, dtype=float), pairs[0] + pairs[1]
    se, sp = sensitivity.estimate.value, specificity.estimate.value
    if n == 0 or se is None or sp is None:
        return Estimate(None, 0.0, 1.0, n)
    value = float(_flip_rate(table, np.array(se), np.array(sp)))
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(table + PRIOR / 2, NUM_SIMULATED)
    accuracies = []
    for share, accuracy in ((se, sensitivity), (sp, specificity)):
        hits = share * accuracy.effective_n
        accuracies.append(rng.beta(hits + PRIOR, accuracy.effective_n - hits + PRIOR, NUM_SIMULATED))
    if np.percentile(accuracies[0] + accuracies[1], 50 * (1 - LEVEL)) <= 1:
        return Estimate(None, 0.0, 1.0, n)
    rates = _flip_rate(tables, *accuracies)
    known = rates[~np.isnan(rates)]
    if np.isnan(value) or len(known) < NUM_SIMULATED / 2:
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
