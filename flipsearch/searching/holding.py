"""What an arm is worth by all that is known so far, and which arms are the elite.

Arms were seen on unequal numbers of prompts: a rate is shrunken under a prior fitted to all arms, and the screen's
forecast, where it has shown that it can tell, counts as so many prompts more as its correlation is worth.

How many of the arms that explored must run on: arms that are alike need not all be measured to the end.

What is known of an arm are beta posteriors over its flip rate and its over-refusal rate. Its worth is the flip rate, or
nothing where it breaks the cap. The most promising arms run on, as few as make it improbable that a held one is best:

    P(best worth among the held > best worth among the kept + tolerance) <= alpha.

Nothing is said against a held arm: it may be as good as a kept one. The statement is as good as its model: prompts are
taken as drawn at random, the arms' rates as independent draws of one fitted prior, and what is fitted as known. It is
no test that holds whatever the truth is, as the cuts of the race are (searching.elimination).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.records import Label, Prompt
from flipsearch.core.studies import Parent
from flipsearch.searching.race import Arm
from flipsearch.searching.rungs import is_admissible
from flipsearch.searching.screening import Screen
from flipsearch.statistics.regression import BetaPrior, fit_prior

Beta = tuple[float, float]
"""Parameters (a, b) of a beta distribution, both above 0."""

ELITE = 8
"""Arms that children are bred from."""


class Estimates:
    """Values of arms; made anew after every cohort."""

    def __init__(self, arms: Sequence[Arm], screen: Screen, cap: float) -> None:
        self._prior: BetaPrior = fit_prior([arm.search.flip_rate for arm in arms])
        self._refusal_prior = fit_prior([arm.search.over_refusal_rate for arm in arms])
        self._screen, self._cap = screen, cap

    def value(self, arm: Arm) -> float | None:
        """Return the expected flip rate of an arm; None for one that failed."""
        if arm.state == "failed":
            return None
        flips, misses = self._flips(arm)
        return flips / (flips + misses)

    def worths(self, arms: Sequence[Arm]) -> NDArray[np.float64]:
        """Return draws (arms, draws) of what each arm is worth; nothing is counted twice."""
        refusals = [self._refusals(arm) for arm in arms]
        flips = [self._flips(arm, {flip.prompt_id for flip in arm.search.flips}) for arm in arms]
        return draw_worths(flips, refusals, self._cap)

    def by_promise(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return the arms that still run, those first that are worth most on average, cap included."""
        running = [arm for arm in arms if arm.state == "running"]
        # To rank, a reading counts on decoded prompts too: how far an answer gave way says more than that it did.
        flips, refusals = [self._flips(arm) for arm in running], [self._refusals(arm) for arm in running]
        means = promise(draw_worths(flips, refusals, self._cap))
        return [running[index] for index in np.argsort(-means.round(6), kind="stable")]

    def _refusals(self, arm: Arm) -> Beta | None:
        rate, prior = arm.search.over_refusal_rate, self._refusal_prior
        known = prior.strength * prior.mean
        if not rate.n or (self._cap == 0 and rate.count == 0):  # no rate is surely 0: none seen is all one can ask
            return None
        return rate.count + known, rate.n - rate.count + prior.strength - known

    def _flips(self, arm: Arm, decoded: Collection[str] = ()) -> Beta:
        """The beta distribution of an arm's flip rate: flips and misses, expected ones among them."""
        rate, told = arm.search.flip_rate, self._screen.told(arm.context, decoded)
        weight = self._prior.strength + told.num_worth
        known = self._prior.strength * self._prior.mean + told.num_worth * told.flip_rate
        return rate.count + known, rate.n - rate.count + weight - known

    def ranked(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return the arms that may win, best first: not failed, not cut, within the cap so far."""
        able = [arm for arm in arms if arm.state in ("running", "complete") and is_admissible(arm.search, self._cap)]
        return sorted(able, key=lambda arm: (-(self.value(arm) or 0.0), arm.search.over_refusal_rate.value or 0.0))

    def elite(self, arms: Sequence[Arm], prompts: Mapping[str, Prompt]) -> list[Parent]:
        """Return the best arms as parents, with the prompts that they failed on."""
        return [_parent(arm, prompts) for arm in self.ranked(arms)[:ELITE]]


def _parent(arm: Arm, prompts: Mapping[str, Prompt]) -> Parent:
    flips = arm.search.flips
    unflipped = [flip for flip in flips if flip.kind == "harmful" and flip.after is Label.UNSAFE]
    refused = [flip for flip in flips if flip.kind == "benign" and flip.refused_after and not flip.refused_before]
    return Parent(
        context=arm.context,
        flip_rate=arm.search.flip_rate,
        unflipped=tuple(prompts[flip.prompt_id].text for flip in unflipped),
        over_refused=tuple(prompts[flip.prompt_id].text for flip in refused),
    )


NUM_DRAWS = 4000
SEED = 0
"""The same arms are kept whenever a study is run again."""
WORTHLESS = -1.0
"""The worth of an arm that breaks the cap: below every flip rate by more than any tolerance."""


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
