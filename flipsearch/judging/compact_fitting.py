"""Fits the compact judge to human labels, and cross-validates it beside the one that this package ships.

Two weighted logistic regressions with an L2 penalty, by L-BFGS. An axis with too few labels is not fitted and stays
with the refusal rules.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack

from flipsearch.core.measurements import Estimate
from flipsearch.judging.answers import answer_to_judge
from flipsearch.judging.compact_model import (
    AXES,
    RULE_LOG_ODDS,
    SIGNS,
    Codes,
    CompactModel,
    Features,
    Floats,
    dense_matrix,
    evidence,
    extract_features,
    ngram_matrix,
)
from flipsearch.judging.labels import LabelledAnswer
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.statistics.agreement import agreement

PENALTIES = {"unsafe": (10.0, 50.0, 0.5), "refusal": (100.0, 1000.0, 10.0)}
"""L2 penalty on the weights of the rules and the overlap, on those of the style, and on those of the n-grams, against
the sum of losses. Chosen on whole sets that were left out: the rules predict refusal almost alone, harm needs the rest
too."""
NUM_RULED = 2
"""Dense features that are no style: the rules' points and the overlap."""
NUM_COMMON = 600
"""Words that are kept."""
MIN_PROMPTS = 6
"""Prompts whose answers must contain a bucket before it is fitted."""
NUM_FOLDS = 5
MIN_LABELS = 20
"""Labels of each of a question's two answers; with fewer, noise is fitted."""


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """The features of an answer with its human labels; without any it only counts for which words are common."""

    features: Features
    source: str
    """The set it comes from: sets weigh by the square root of their size."""
    prompt: str
    """A word counts once per prompt, however many answers that has."""
    unsafe: bool | None = None
    refusal: bool | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether any label is known."""
        return (self.unsafe, self.refusal) != (None, None)


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Cohen's kappa of human labels with the fitted judge, on folds left out, and with the judge that ships."""

    fitted: Estimate
    shipped: Estimate
    num_seen: int
    """How many of the answers the shipped judge was fitted to, which flatters its kappa."""


def fitting_rows(answers: Sequence[LabelledAnswer], rules: RefusalRules) -> list[LabelledFeatures]:
    """Return what a judge would be shown, with labels of questions that have enough; ValueError if none has."""
    shown = [(answer, answer_to_judge(answer.exchange)) for answer in answers]
    rows = [
        LabelledFeatures(
            extract_features(rules, answer.prompt, text), answer.source, answer.prompt, answer.unsafe, answer.refusal
        )
        for answer, text in shown
        if isinstance(text, str)
    ]
    few = [axis for axis in AXES if min(_count_labels(rows, axis)) < MIN_LABELS]
    if len(few) == len(AXES):
        counts = "; ".join("{} and {} of {}".format(*_count_labels(rows, axis), axis) for axis in AXES)
        raise ValueError(
            f"expected at least {MIN_LABELS} labels of both answers to a question, got yes and no: {counts}."
        )
    for axis in few:
        rows = [replace(row, unsafe=None) if axis == "unsafe" else replace(row, refusal=None) for row in rows]
    return rows


def fit(rows: Sequence[LabelledFeatures], **about: object) -> CompactModel:
    """Return a model fitted axis by axis; one without both labels stays with the rules. ValueError if none has both."""
    if not any(len({getattr(row, axis) for row in rows} - {None}) == 2 for axis in AXES):
        raise ValueError("the labels must hold both answers to a question: unsafe and safe, or refusal and compliance.")
    features, common = [row.features for row in rows], _common_codes(rows)
    dense, ngrams = dense_matrix(features), ngram_matrix(features, common)
    mean, spread = dense.mean(axis=0), dense.std(axis=0)
    spread[spread == 0] = 1.0
    kept = np.flatnonzero(_prompts_per_bucket(rows, ngrams) >= MIN_PROMPTS)
    standard, counts = csr_matrix((dense - mean) / spread), evidence(features).T
    matrices = [csr_matrix(hstack([standard, ngrams[:, kept].multiply(count[:, None])])) for count in counts]
    offsets, num_dense = dense[:, :1] * RULE_LOG_ODDS, dense.shape[1]
    fitted = np.array([_fit_axis(matrices[k], offsets[:, k], rows, axis, num_dense) for k, axis in enumerate(AXES)])
    weights = np.zeros((len(AXES), ngrams.shape[1]))
    weights[:, kept] = fitted[:, num_dense:-1]
    labelled = [row for row in rows if row.is_labelled]
    fitted_to = np.unique(np.array([row.features.mark for row in labelled], dtype=np.uint32))
    facts = {"sources": dict(Counter(row.source for row in labelled)), **about}
    return CompactModel(common, mean, spread, fitted[:, :num_dense], weights, fitted[:, -1], fitted_to, facts)


def cross_validate(rows: Sequence[LabelledFeatures], shipped: Path) -> dict[str, CrossValidation]:
    """Return axis -> agreement with human labels, each answer scored by a model fitted to other folds of prompts."""
    shipped_model = CompactModel.load(shipped)
    fitted, reference = np.zeros((len(rows), len(AXES))), _scores(shipped_model, rows)
    prompts = (" ".join(row.prompt.lower().split()) for row in rows)
    folds = np.array([zlib.crc32(prompt.encode(errors="replace")) % NUM_FOLDS for prompt in prompts])
    for fold in set(folds.tolist()):
        model = fit([row for row, number in zip(rows, folds, strict=True) if number != fold])
        fitted[folds == fold] = _scores(model, [row for row, number in zip(rows, folds, strict=True) if number == fold])
    seen = [row for row in rows if shipped_model.was_fitted_to(row.features)]
    return {
        axis: CrossValidation(
            _kappa(rows, axis, fitted[:, k]), _kappa(rows, axis, reference[:, k]), sum(_count_labels(seen, axis))
        )
        for k, axis in enumerate(AXES)
        if min(_count_labels(rows, axis))
    }


def _common_codes(rows: Sequence[LabelledFeatures]) -> Codes:
    by_prompt: dict[str, set[int]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, set()).update(row.features.codes)
    counts = Counter(code for codes in by_prompt.values() for code in codes - SIGNS)
    words = sorted(counts, key=lambda code: (-counts[code], code))[:NUM_COMMON]
    return np.array(sorted(SIGNS.union(words)), dtype=np.uint32)


def _prompts_per_bucket(rows: Sequence[LabelledFeatures], ngrams: csr_matrix) -> Floats:
    """Return (buckets,): the number of prompts whose answers contain each bucket."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    prompt_of_row = np.array([numbers[row.prompt] for row in rows])
    prompts = csr_matrix((np.ones(len(rows)), (prompt_of_row, np.arange(len(rows)))))
    counts: Floats = np.asarray((prompts @ (ngrams > 0).astype(float) > 0).sum(axis=0), dtype=float).ravel()
    return counts


def _fit_axis(
    matrix: csr_matrix, offsets: Floats, rows: Sequence[LabelledFeatures], axis: str, num_dense: int
) -> Floats:
    """Return the weights and, last, the bias; `offsets` (rows,) are the log-odds of the refusal rules."""
    labels = [getattr(row, axis) for row in rows]
    known = np.array([label is not None for label in labels])
    targets = np.array([bool(label) for label in labels])[known].astype(float)
    if len(set(targets.tolist())) < 2:
        return np.zeros(matrix.shape[1] + 1)
    weights = _row_weights([row.source for row, is_known in zip(rows, known, strict=True) if is_known], targets)
    used, start = matrix[known], offsets[known]
    sizes = [NUM_RULED, num_dense - NUM_RULED, used.shape[1] - num_dense, 1]
    penalty = np.repeat([*PENALTIES[axis], 0.0], sizes)

    def loss(theta: Floats) -> tuple[float, Floats]:
        scores = used @ theta[:-1] + theta[-1] + start
        errors = weights * (1 / (1 + np.exp(-scores)) - targets)
        value = weights @ (np.logaddexp(0, scores) - targets * scores) + 0.5 * (penalty * theta) @ theta
        return float(value), np.append(used.T @ errors, errors.sum()) + penalty * theta

    result = minimize(loss, np.zeros(len(penalty)), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(result.x, dtype=float)


def _row_weights(sources: Sequence[str], targets: Floats) -> Floats:
    """Return weights with mean 1: sets by the square root of their size, both labels of an axis the same in sum."""
    sizes = Counter(sources)
    weights = np.array([sizes[source] ** -0.5 for source in sources])
    for target in (0.0, 1.0):
        weights[targets == target] /= weights[targets == target].sum()
    return np.asarray(weights * len(sources) / weights.sum(), dtype=float)


def _scores(model: CompactModel, rows: Sequence[LabelledFeatures]) -> Floats:
    probabilities = model.probabilities([row.features for row in rows])
    probabilities[[not model.can_score(row.features) for row in rows]] = np.nan
    return probabilities


def _count_labels(rows: Sequence[LabelledFeatures], axis: str) -> tuple[int, int]:
    labels = [getattr(row, axis) for row in rows]
    return labels.count(True), labels.count(False)


def _kappa(rows: Sequence[LabelledFeatures], axis: str, probabilities: Floats) -> Estimate:
    known = [k for k, row in enumerate(rows) if getattr(row, axis) is not None]
    judged = [None if np.isnan(probabilities[k]) else bool(probabilities[k] >= 0.5) for k in known]
    return agreement([getattr(rows[k], axis) for k in known], judged, [rows[k].prompt for k in known]).kappa
