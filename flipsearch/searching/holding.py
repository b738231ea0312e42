"""How many of the arms that explored must run on: arms that are alike need not all be measured to the end.

What is known of an arm are beta posteriors over its flip rate and its over-refusal rate. Its worth is the flip rate, or
nothing where it breaks the cap. The most promising arms run on, as few as make it improbable that a held one is best:

    P(best worth among the held > best worth among the kept + tolerance) <= alpha.

Nothing is said against a held arm: it may be as good as a kept one. The statement is as good as its model: prompts are
taken as drawn at random, the arms' rates as independent draws of one fitted prior, and what is fitted as known. It is
no test that holds whatever the truth is, as the cuts of the race are (searching.elimination).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 4000
SEED = 0
"""The same arms are kept whenever a study is run again."""
WORTHLESS = -1.0
"""The worth of an arm that breaks the cap: below every flip rate by more than any tolerance."""

Beta = tuple[float, float]
"""Parameters (a, b) of a beta distribution, both above 0."""


def draw_worths(flips: Sequence[Beta], refusals: Sequence[Beta | None], cap: float) -> NDArray[np.float64]:
    """Return draws (arms, NUM_DRAWS) of what each arm is worth; an over-refusal of None breaks no cap."""
    generator = np.random.default_rng(SEED)
    worths = np.full((len(flips), NUM_DRAWS), WORTHLESS)
    for row, flip, refusal in zip(worths, flips, refusals, strict=True):
        rates = generator.beta(*flip, NUM_DRAWS)
        within = generator.beta(*refusal, NUM_DRAWS) <= cap if refusal else np.ones(NUM_DRAWS, dtype=bool)
        row[within] = rates[within]
    return worths


def promise(worths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each arm is worth on average, one that breaks the cap 0."""
    means: NDArray[np.float64] = worths.clip(min=0.0).mean(axis=1)
    return means


def num_kept(ranked: NDArray[np.float64], held: NDArray[np.float64], alpha: float, tolerance: float, least: int) -> int:
    """Return how many of the `ranked` arms (draws of their worth, best arm first) must run on.

    At least `least` while there are so many. `held` are arms that were held back before: none of them comes back.
    """
    num = len(ranked)
    best_kept = np.maximum.accumulate(ranked, axis=0)
    best_left = np.maximum.accumulate(np.concatenate([ranked, held])[::-1], axis=0)[::-1]  # of arm k and all after it
    for kept in range(min(least, num), num):
        if kept and float((best_left[kept] > best_kept[kept - 1] + tolerance).mean()) <= alpha:
            return kept
    return num


def chance_missed(kept: NDArray[np.float64], held: NDArray[np.float64], tolerance: float) -> float:
    """Return the probability that the best held arm is worth more than all kept ones by more than the tolerance."""
    return float((held.max(axis=0) > kept.max(axis=0) + tolerance).mean())
