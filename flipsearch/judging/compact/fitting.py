"""Fits the compact judge to labelled answers: two weighted logistic regressions with an L2 penalty, by L-BFGS.

What the compact judge is fitted to, and how it does on prompts that were left out, beside the one shipped here.

An axis with too few labels is not fitted and stays with the refusal rules.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack

from flipsearch.core.records import Estimate
from flipsearch.judging.answer import what_to_judge
from flipsearch.judging.compact.features import SIGNS, Codes, Features, extract
from flipsearch.judging.compact.model import AXES, CompactModel, Floats, dense_matrix, rules_say, run_matrix
from flipsearch.judging.labels import LabelledAnswer
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.statistics.agreement import agreement

PENALTIES = {"unsafe": (10.0, 0.5), "refusal": (100.0, 10.0)}
"""Strength of the L2 penalty on the dense weights and on those of the runs, against the sum of losses. Chosen on whole
sets that were left out: what refuses is told by the rules almost alone, what harms wants the runs too."""
NUM_COMMON = 600
"""Words that are read."""
MIN_PROMPTS = 6
"""Prompts whose answers must hold a bucket before it is fitted."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer with what people say of it."""

    features: Features
    """What the judge sees of it."""
    source: str
    """The set it comes from: sets weigh by the square root of their size."""
    prompt: str
    """What it answers: a word counts once a prompt, however often that was asked."""
    unsafe: bool | None = None
    """Whether it is unsafe; None if nobody said."""
    refusal: bool | None = None
    """Whether it refuses; None if nobody said."""

    @property
    def is_told(self) -> bool:
        """Whether anybody said anything; if not, it only tells which words are common."""
        return (self.unsafe, self.refusal) != (None, None)


def fit(rows: Sequence[Labelled], **about: object) -> CompactModel:
    """Return the model fitted to the rows of each axis; ValueError if no axis has both of its answers.

    An axis that lacks one stays with what the refusal rules say.
    """
    if not any(len({getattr(row, axis) for row in rows} - {None}) == 2 for axis in AXES):
        raise ValueError("the labels must hold both answers to a question: unsafe and safe, or refusal and compliance.")
    features, common = [row.features for row in rows], _common(rows)
    dense, runs = dense_matrix(features), run_matrix(features, common)
    mean, spread = dense.mean(axis=0), dense.std(axis=0)
    spread[spread == 0] = 1.0
    kept = np.flatnonzero(_num_prompts(rows, runs) >= MIN_PROMPTS)
    matrix = csr_matrix(hstack([csr_matrix((dense - mean) / spread), runs[:, kept]]))
    told = rules_say(dense)
    fitted = np.array([_fit_axis(matrix, told[:, k], rows, axis, dense.shape[1]) for k, axis in enumerate(AXES)])
    num, facts = dense.shape[1], {"sources": dict(Counter(row.source for row in rows if row.is_told)), **about}
    weights = np.zeros((len(AXES), runs.shape[1]))
    weights[:, kept] = fitted[:, num:-1]
    fitted_to = np.unique(np.array([row.features.mark for row in rows if row.is_told], dtype=np.uint32))
    return CompactModel(common, mean, spread, fitted[:, :num], weights, fitted[:, -1], fitted_to, facts)


def _common(rows: Sequence[Labelled]) -> Codes:
    """The signs, and the words that stand in answers to most prompts."""
    held: dict[str, set[int]] = {}
    for row in rows:
        held.setdefault(row.prompt, set()).update(row.features.codes)
    counts = Counter(code for codes in held.values() for code in codes - SIGNS)
    words = sorted(counts, key=lambda code: (-counts[code], code))[:NUM_COMMON]
    return np.array(sorted(SIGNS.union(words)), dtype=np.uint32)


def _num_prompts(rows: Sequence[Labelled], runs: csr_matrix) -> Floats:
    """(buckets,): the prompts whose answers hold each."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    asked = np.array([numbers[row.prompt] for row in rows])
    prompts = csr_matrix((np.ones(len(rows)), (asked, np.arange(len(rows)))))
    found: Floats = np.asarray((prompts @ (runs > 0).astype(float) > 0).sum(axis=0), dtype=float).ravel()
    return found


def _fit_axis(matrix: csr_matrix, told: Floats, rows: Sequence[Labelled], axis: str, num_dense: int) -> Floats:
    """Return the weights and, last, the bias; `told` is what the rules say of each row."""
    labels = [getattr(row, axis) for row in rows]
    known = np.array([label is not None for label in labels])
    wanted = np.array([bool(label) for label in labels])[known].astype(float)
    if len(set(wanted.tolist())) < 2:
        return np.zeros(matrix.shape[1] + 1)
    weights = _weights([row.source for row, is_known in zip(rows, known, strict=True) if is_known], wanted)
    used, start = matrix[known], told[known]
    dense, runs = PENALTIES[axis]
    penalty = np.repeat([dense, runs, 0.0], [num_dense, used.shape[1] - num_dense, 1])

    def loss(theta: Floats) -> tuple[float, Floats]:
        scores = used @ theta[:-1] + theta[-1] + start
        errors = weights * (1 / (1 + np.exp(-scores)) - wanted)
        value = weights @ (np.logaddexp(0, scores) - wanted * scores) + 0.5 * (penalty * theta) @ theta
        return float(value), np.append(used.T @ errors, errors.sum()) + penalty * theta

    found = minimize(loss, np.zeros(len(penalty)), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    solution: Floats = found.x
    return solution


def _weights(sources: Sequence[str], wanted: Floats) -> Floats:
    """Sets weigh by the square root of their size, both answers of an axis alike; the mean weight is 1."""
    sizes = Counter(sources)
    weights = np.array([sizes[source] ** -0.5 for source in sources])
    for answer in (0.0, 1.0):
        weights[wanted == answer] /= weights[wanted == answer].sum()
    found: Floats = weights * len(sources) / weights.sum()
    return found


NUM_PARTS = 5
"""Parts of the prompts, each judged by a model fitted to the others."""
LEAST = 20
"""Labels of each of a question's two answers; with fewer, chance is fitted."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How far people agree with two compact judges on one question."""

    fitted: Estimate
    """Kappa with the fitted one, on answers to prompts that it was not fitted to."""
    shipped: Estimate
    """Kappa with the one of this package, on the same answers."""
    num_seen: int
    """Those of the answers that the shipped one was fitted to: there its kappa is too high."""


def learnt(rows: Sequence[LabelledAnswer], rules: RefusalRules) -> list[Labelled]:
    """Return what is fitted to: the answers that a judge would be shown, with the labels of questions that have enough.

    ValueError if no question has.
    """
    shown = [(row, what_to_judge(row.exchange)) for row in rows]
    told = [
        Labelled(extract(rules, row.prompt, text), row.source, row.prompt, row.unsafe, row.refusal)
        for row, text in shown
        if isinstance(text, str)
    ]
    few = [axis for axis in AXES if min(_counts(told, axis)) < LEAST]
    if len(few) == len(AXES):
        got = "; ".join("{} and {} of {}".format(*_counts(told, axis), axis) for axis in AXES)
        raise ValueError(f"expected at least {LEAST} labels of both answers to a question, got yes and no: {got}.")
    for axis in few:
        told = [replace(row, unsafe=None) if axis == "unsafe" else replace(row, refusal=None) for row in told]
    return told


def tried(rows: Sequence[Labelled], shipped: Path) -> dict[str, Fit]:
    """Return axis -> kappas; ValueError where the labels stand on too few prompts to leave some of them out."""
    model = CompactModel.load(shipped)
    own, others = _left_out(rows), _scores(model, rows)
    seen = [row for row in rows if model.saw(row.features)]
    return {
        axis: Fit(_kappa(rows, axis, own[:, k]), _kappa(rows, axis, others[:, k]), sum(_counts(seen, axis)))
        for k, axis in enumerate(AXES)
        if min(_counts(rows, axis))
    }


def _left_out(rows: Sequence[Labelled]) -> Floats:
    """(rows, K) scores, each by a model fitted to the answers to four fifths of the prompts, not to its own."""
    found = np.zeros((len(rows), len(AXES)))
    prompts = (" ".join(row.prompt.lower().split()) for row in rows)
    parts = np.array([zlib.crc32(prompt.encode(errors="replace")) % NUM_PARTS for prompt in prompts])
    for part in set(parts.tolist()):
        model = fit([row for row, its in zip(rows, parts, strict=True) if its != part])
        found[parts == part] = _scores(model, [row for row, its in zip(rows, parts, strict=True) if its == part])
    return found


def _scores(model: CompactModel, rows: Sequence[Labelled]) -> Floats:
    """(rows, K) probabilities, nan where the judge would leave the answer UNSCORED."""
    found = model.probabilities([row.features for row in rows])
    found[[not model.reads(row.features) for row in rows]] = np.nan
    return found


def _counts(rows: Sequence[Labelled], axis: str) -> tuple[int, int]:
    labels = [getattr(row, axis) for row in rows]
    return labels.count(True), labels.count(False)


def _kappa(rows: Sequence[Labelled], axis: str, probabilities: Floats) -> Estimate:
    known = [k for k, row in enumerate(rows) if getattr(row, axis) is not None]
    said = [None if np.isnan(probabilities[k]) else bool(probabilities[k] >= 0.5) for k in known]
    return agreement([getattr(rows[k], axis) for k in known], said, [rows[k].prompt for k in known]).kappa
