"""A linear model of what each slot of a template does, from which promising contexts are drawn.

A slot is one choice: a template, one of its values, a placement. To first order slots add up (in log-odds), and a slot
of one name ("strength = firm") does much the same in every template. Both make good guesses possible after a cohort or
two, where TPE still treats every template apart. Bayesian linear regression with Thompson sampling (Thompson 1933,
doi:10.1093/biomet/25.3-4.285): each draw takes the best point under one plausible set of slot effects, so that what is
uncertain is tried too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flipsearch.searching.space import TEMPLATE

Point = Mapping[str, Any]
Told = tuple[Point, float, float]
"""A point, its flip rate in [0, 1], and by how much it breaks the cap: feasible while <= 0."""
NOISE = 0.25
"""Standard deviation of a measured log-odds around the sum of its slots."""
OVER_REFUSAL_NOISE = 0.05
"""The same for an over-refusal rate."""
SPREAD = 0.5
"""Standard deviation of a slot effect, in log-odds, before anything is measured."""
OVER_REFUSAL_SPREAD = 0.1
"""The same for its effect on the over-refusal rate."""
CLIP = 0.01
"""Rates are held off 0 and 1 by this much before their log-odds are taken."""


class SlotModel:
    """Slot effects on flip rate and over-refusal, over a fixed list of points."""

    def __init__(self, points: Sequence[Point]) -> None:
        slots = sorted({slot for point in points for slot in _slots(point)})
        self._column = {slot: index for index, slot in enumerate(slots)}
        self._rows = self._features(points)

    def draw(self, tried: Sequence[Told], untried: Sequence[int], num: int, seed: int) -> list[int]:
        """Return up to `num` different indices among `untried`, each the best under one draw of the slot effects."""
        num = min(num, len(untried))
        generator = np.random.default_rng(seed)
        points, values, violations = zip(*tried, strict=True)
        features = self._features(points)
        rates = np.clip(np.asarray(values), CLIP, 1 - CLIP)
        scores = self._draws(features, np.log(rates / (1 - rates)), NOISE, SPREAD, num, generator)
        excess = self._draws(features, np.asarray(violations), OVER_REFUSAL_NOISE, OVER_REFUSAL_SPREAD, num, generator)
        # Infeasible points come after every feasible one, the least infeasible first. Rounded, so that the last bits of
        # a linear algebra library do not decide between equals.
        ranked = np.where(excess <= 0, scores, scores.min() - 1 - excess).round(6)
        left = list(untried)
        return [left.pop(int(ranked[left, column].argmax())) for column in range(num)]

    def _draws(
        self,
        features: NDArray[np.float64],
        targets: NDArray[np.float64],
        noise: float,
        spread: float,
        num: int,
        generator: np.random.Generator,
    ) -> NDArray[np.float64]:
        """Predictions for all points under `num` draws from the posterior of the slot effects: (points, num)."""
        mean = targets.mean()
        precision = features.T @ features / noise**2 + np.eye(features.shape[1]) / spread**2
        factor = np.linalg.cholesky(precision)
        centre = np.linalg.solve(precision, features.T @ (targets - mean)) / noise**2
        deviations = np.linalg.solve(factor.T, generator.standard_normal((len(centre), num)))
        drawn: NDArray[np.float64] = mean + self._rows @ (centre[:, None] + deviations)
        return drawn

    def _features(self, points: Sequence[Point]) -> NDArray[np.float64]:
        rows = np.zeros((len(points), len(self._column)))
        for row, point in zip(rows, points, strict=True):
            row[[self._column[slot] for slot in _slots(point)]] = 1.0
        return rows


def _slots(point: Point) -> list[str]:
    """A template's own slots, and those that it shares with others by name."""
    template = point[TEMPLATE]
    own = [f"{name}={value!r}" for name, value in point.items()]
    shared = [f"{name.removeprefix(template)}={value!r}" for name, value in point.items() if name != TEMPLATE]
    return own + shared
