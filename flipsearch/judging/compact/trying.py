"""What the compact judge is fitted to, and how it does on prompts that were left out, beside the one shipped here.

An axis with too few labels is not fitted and stays with the refusal rules.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flipsearch.judging.answer import what_to_judge
from flipsearch.judging.compact.features import extract
from flipsearch.judging.compact.fitting import Labelled, fit
from flipsearch.judging.compact.model import AXES, CompactModel, Floats
from flipsearch.judging.labels import LabelledAnswer
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.records import Estimate
from flipsearch.statistics.agreement import agreement

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
