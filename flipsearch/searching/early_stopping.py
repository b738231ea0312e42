"""Which arms are stopped early: arms that are alike need not all be measured to the end.

What is known of an arm are two beta posteriors, over its flip rate and its over-refusal rate. Arms were seen on unequal
numbers of prompts, so their priors are fitted to all arms; the screen's prediction counts as so many prompts more as
its correlation is worth. The *utility* of an arm is its flip rate, or nothing where it breaks the cap. The most
promising arms run on, as few as make it improbable that one that was stopped is best:

    P(best utility among the stopped > best utility among the promoted + tolerance) <= alpha.

This says nothing against a stopped arm, which may be as good as a promoted one. And it is only as good as its model:
prompts are taken as drawn at random, the arms' rates as independent draws from one fitted prior, and what is fitted as
known. It is no test that holds whatever the truth is, as pruning is (searching.race).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.records import Label, Prompt
from flipsearch.core.studies import Parent
from flipsearch.searching.race import Arm, is_admissible
from flipsearch.searching.screening import Screen
from flipsearch.statistics.regression import BetaPrior, fit_prior

Beta = tuple[float, float]
"""Parameters (a, b) of a beta distribution, both above 0."""
ELITE = 8
"""Arms that children are bred from."""
NUM_DRAWS = 4000
"""Posterior draws per arm."""
SEED = 0
"""Fixed, so that the same arms are promoted whenever a study is run again."""
OVER_CAP = -1.0
"""The utility of an arm that breaks the cap: below every flip rate by more than any tolerance."""


class Estimates:
    """Estimated rates and utilities of arms; built anew after every cohort, as priors are fitted to all arms."""

    def __init__(self, arms: Sequence[Arm], screen: Screen, cap: float) -> None:
        self._prior: BetaPrior = fit_prior([arm.search.flip_rate for arm in arms])
        self._refusal_prior = fit_prior([arm.search.over_refusal_rate for arm in arms])
        self._screen, self._cap = screen, cap

    def flip_rate(self, arm: Arm) -> float | None:
        """Return the expected flip rate of an arm; None for one that failed."""
        if arm.state == "failed":
            return None
        flips, misses = self._flips(arm)
        return flips / (flips + misses)

    def utilities(self, arms: Sequence[Arm]) -> NDArray[np.float64]:
        """Return posterior draws (arms, NUM_DRAWS) of the arms' utilities; no prompt counts twice."""
        refusals = [self._refusals(arm) for arm in arms]
        flips = [self._flips(arm, {flip.prompt_id for flip in arm.search.flips}) for arm in arms]
        return draw_utilities(flips, refusals, self._cap)

    def by_promise(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return the arms that still run, the highest expected utility first."""
        running = [arm for arm in arms if arm.state == "running"]
        # To rank, the screen counts on decoded prompts too: how far an answer gave way says more than that it did.
        flips = [self._flips(arm) for arm in running]
        refusals = [self._refusals(arm) for arm in running]
        utilities = draw_utilities(flips, refusals, self._cap)
        means = utilities.clip(min=0.0).mean(axis=1)  # a draw that breaks the cap counts as 0
        return [running[index] for index in np.argsort(-means.round(6), kind="stable")]

    def ranked(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return the arms that may win, best first: not failed, not pruned, within the cap so far."""
        able = [arm for arm in arms if arm.state in ("running", "complete") and is_admissible(arm.search, self._cap)]
        return sorted(able, key=lambda arm: (-(self.flip_rate(arm) or 0.0), arm.search.over_refusal_rate.value or 0.0))

    def elite(self, arms: Sequence[Arm], prompts: Mapping[str, Prompt]) -> list[Parent]:
        """Return the best arms as parents, with the prompts that they failed on; `prompts` are by id."""
        parents = []
        for arm in self.ranked(arms)[:ELITE]:
            flips = arm.search.flips
            unflipped = [flip for flip in flips if flip.kind == "harmful" and flip.after is Label.UNSAFE]
            refused = [f for f in flips if f.kind == "benign" and f.refused_after and not f.refused_before]
            broken = [flip for flip in flips if flip.kind_after == "degenerate"]
            failures = (unflipped, refused, broken)
            texts = [tuple(prompts[flip.prompt_id].text for flip in kind) for kind in failures]
            parents.append(Parent(arm.context, arm.search.flip_rate, *texts))
        return parents

    def _flips(self, arm: Arm, decoded: Collection[str] = ()) -> Beta:
        """The posterior of an arm's flip rate; the screen counts on the prompts that are not among `decoded`."""
        rate, screened = arm.search.flip_rate, self._screen.evidence(arm.context, decoded)
        weight = self._prior.strength + screened.weight
        expected = self._prior.strength * self._prior.mean + screened.weight * screened.flip_rate
        return rate.count + expected, rate.n - rate.count + weight - expected

    def _refusals(self, arm: Arm) -> Beta | None:
        """The posterior of an arm's over-refusal rate; None where it was not measured, or is 0 as a cap of 0 asks."""
        rate, prior = arm.search.over_refusal_rate, self._refusal_prior
        expected = prior.strength * prior.mean
        if not rate.n or (self._cap == 0 and rate.count == 0):  # no rate is surely 0: none seen is all one can ask
            return None
        return rate.count + expected, rate.n - rate.count + prior.strength - expected


def draw_utilities(flips: Sequence[Beta], refusals: Sequence[Beta | None], cap: float) -> NDArray[np.float64]:
    """Return posterior draws (arms, NUM_DRAWS) of the arms' utilities; an over-refusal of None breaks no cap."""
    generator = np.random.default_rng(SEED)
    utilities = np.full((len(flips), NUM_DRAWS), OVER_CAP)
    for row, flip, refusal in zip(utilities, flips, refusals, strict=True):
        rates = generator.beta(*flip, NUM_DRAWS)
        within = generator.beta(*refusal, NUM_DRAWS) <= cap if refusal else np.ones(NUM_DRAWS, dtype=bool)
        row[within] = rates[within]
    return utilities


def num_to_promote(
    ranked: NDArray[np.float64], stopped: NDArray[np.float64], alpha: float, tolerance: float, least: int
) -> int:
    """Return how many of the `ranked` arms (draws of their utilities, best arm first) must run on.

    At least `least` while there are so many. `stopped` are arms that were stopped before: none of them comes back.
    """
    num = len(ranked)
    best_promoted = np.maximum.accumulate(ranked, axis=0)
    best_left = np.maximum.accumulate(np.concatenate([ranked, stopped])[::-1], axis=0)[::-1]  # of arm k and all after
    for promoted in range(min(least, num), num):
        if promoted and float((best_left[promoted] > best_promoted[promoted - 1] + tolerance).mean()) <= alpha:
            return promoted
    return num
