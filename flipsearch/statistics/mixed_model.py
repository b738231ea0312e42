"""A linear mixed model of outcomes by context and prompt, exactly solved.

    outcome of context c on prompt p = rate_c + prompt_p + noise        rates of contexts that are alike are alike

`rate` has a Gaussian prior whose covariance is a sum of kernels, and a mean that scores may raise. How much each part
counts is chosen by marginal likelihood, so that texts count for nothing where they predict nothing. All contexts of a
study see the same prompts in the same order, so what a prompt does to all of them is taken out by `prompt`: two
contexts are compared in pairs. The variance of a context's noise is that of its own rate. The model is linear in the
outcomes: a logistic one was tried, and its Gaussian approximation puts rare outcomes too high.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Array = NDArray[np.float64]
JITTER = 1e-6
"""Added to the diagonal of covariances, so that they can be factored."""
SHRINK = 4.0
"""Outcomes at the mean of all that a context's own noise is estimated with."""
MIN_CONTEXTS = 4
"""Contexts with outcomes that it takes to choose how much their parts count."""
CONSTANT = 0.1
"""Prior variance of the rate that all contexts share."""
SCALES = (0.01, 0.03, 0.1)
"""Prior variance of rates that the texts account for."""
MIXES = ((1.0, 0.0), (0.7, 0.3), (0.3, 0.7), (0.0, 1.0))
"""Shares of sentences and of words in it."""
OWN = (0.05, 0.3)
"""Variance of a context's own part, as a share of it."""
OWN_ALONE = (0.005, 0.02, 0.06)
"""Variances of the own part where texts predict nothing."""
LEAST_NOISE = 0.25
"""Share of the variance of a context's outcomes that is noise at least."""
PROMPTS = (0.003, 0.01, 0.03, 0.1, 0.2)
"""Variances between prompts."""
SLOPES = (0.0, 0.05, 0.1)
"""By how much a score that is one standard deviation higher raises a rate: prior mean, and standard deviation."""
MINOR = 0.05
"""Share of placement, and of length, in the variance."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Prior variances of the parts of a rate, and of prompts."""

    sentences: float
    words: float
    minor: float
    own: float
    prompts: float = PROMPTS[1]
    scores: float = SLOPES[1]


CANDIDATES = [
    Weights(scale * sentences, scale * words, scale * MINOR, scale * own)
    for scale in SCALES
    for sentences, words in MIXES
    for own in OWN
] + [Weights(0.0, 0.0, 0.0, own) for own in OWN_ALONE]


@dataclass(frozen=True, slots=True)
class ContextFeatures:
    """What contexts have in common."""

    sentences: Array
    """(contexts, contexts); so are the other kernels, each with a mean diagonal of 1."""
    words: Array
    minor: Array
    """Placement and length."""
    scores: Array
    """(contexts,), in standard deviations from their mean; 0 for a context without one."""

    def of(self, chosen: NDArray[np.intp]) -> "ContextFeatures":
        """Return the features of some contexts."""
        square = np.ix_(chosen, chosen)
        return ContextFeatures(self.sentences[square], self.words[square], self.minor[square], self.scores[chosen])


class RateModel:
    """The mixed model of one rate; `prior_mean` is what a context does of which nothing is known."""

    def __init__(self, prior_mean: float) -> None:
        self._mean, self.weights = prior_mean, CANDIDATES[10]
        self._chosen_by = np.empty((0, 0))
        """Outcomes that the weights were chosen by: they are chosen anew when there are others."""

    def draws(self, features: ContextFeatures, outcomes: Array, num: int, generator: np.random.Generator) -> Array:
        """Return joint draws (num, contexts) of the rates over all prompts.

        `outcomes` (contexts, prompts) are in [-1, 1], nan where nothing is known; a row may be all nan.
        """
        known = ~np.isnan(outcomes).all(axis=1)
        seen, other = np.flatnonzero(known), np.flatnonzero(~known)
        if len(seen) >= MIN_CONTEXTS and not np.array_equal(outcomes[seen], self._chosen_by, equal_nan=True):
            self._chosen_by = outcomes[seen]
            self.weights = _likeliest(self.weights, features.of(seen), self._mean, outcomes[seen])
        mean, prior = _prior(self.weights, features, self._mean)
        drawn = np.empty((num, len(outcomes)))
        if not len(seen):
            drawn[:] = mean + generator.standard_normal(drawn.shape) @ _factor(prior).T
            return drawn
        system = _System(mean[seen], prior[np.ix_(seen, seen)], outcomes[seen], self.weights.prompts)
        rates, prompts = system.draws(num, generator)
        drawn[:, seen] = rates
        if len(other):
            gain = prior[np.ix_(other, seen)] @ system.precision
            left = prior[np.ix_(other, other)] - gain @ prior[np.ix_(seen, other)]
            drawn[:, other] = mean[other] + (rates - mean[seen]) @ gain.T
            drawn[:, other] += generator.standard_normal((num, len(other))) @ _factor(left).T
        drawn += prompts.mean(axis=1)[:, None]
        return drawn


def _likeliest(weights: Weights, features: ContextFeatures, mean: float, outcomes: Array) -> Weights:
    """Return the weights of the highest marginal likelihood: those of the texts first, then the two others."""

    def evidence(tried: Weights) -> float:
        return _System(*_prior(tried, features, mean), outcomes, tried.prompts).log_evidence

    weights = max((replace(w, prompts=weights.prompts, scores=weights.scores) for w in CANDIDATES), key=evidence)
    weights = max((replace(weights, prompts=variance) for variance in PROMPTS), key=evidence)
    if features.scores.any():
        weights = max((replace(weights, scores=slope) for slope in SLOPES), key=evidence)
    return weights


def _prior(weights: Weights, features: ContextFeatures, mean: float) -> tuple[Array, Array]:
    covariance: Array = weights.sentences * features.sentences + weights.words * features.words
    covariance += weights.minor * features.minor + CONSTANT
    covariance += weights.scores**2 * np.outer(features.scores, features.scores)
    covariance += (weights.own + JITTER) * np.eye(len(covariance))
    return mean + weights.scores * features.scores, covariance


class _System:
    """The normal equations of rates and prompts; outcomes as in `RateModel.draws`, each row with at least one."""

    def __init__(self, mean: Array, prior: Array, outcomes: Array, prompt_variance: float) -> None:
        num, num_prompts = outcomes.shape
        known = ~np.isnan(outcomes)
        values = np.where(known, outcomes, 0.0)
        counts, sums = known.sum(axis=1), values.sum(axis=1)
        overall = (sums.sum() + 0.5) / (counts.sum() + 1.0)
        rates = np.clip((sums + SHRINK * overall) / (counts + SHRINK), 0.02, 0.98)
        variances = rates * (1 - rates)  # of which the prompts have their part
        weights = known / np.maximum(variances - prompt_variance, LEAST_NOISE * variances)[:, None]
        self.precision: Array = np.asarray(np.linalg.inv(prior))
        """Of the prior."""
        self._num = num
        normal = np.empty((num + num_prompts, num + num_prompts))
        normal[:num, :num] = self.precision + np.diag(weights.sum(axis=1))
        normal[num:, num:] = np.diag(weights.sum(axis=0) + 1 / prompt_variance)
        normal[:num, num:], normal[num:, :num] = weights, weights.T
        pull = self.precision @ mean
        right = np.concatenate([(weights * values).sum(axis=1) + pull, (weights * values).sum(axis=0)])
        self._factor = np.linalg.cholesky(normal)
        self._solution = solve_triangular(self._factor.T, solve_triangular(self._factor, right, lower=True))
        squares = (weights * values**2).sum() + pull @ mean - right @ self._solution
        log_noise = np.log(weights[known]).sum() / 2
        log_prior = float(np.linalg.slogdet(self.precision)[1]) / 2 - num_prompts * np.log(prompt_variance) / 2
        self.log_evidence = float(log_noise + log_prior - squares / 2 - np.log(np.diag(self._factor)).sum())
        """Of the outcomes, but for a constant."""

    def draws(self, num: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Return posterior draws of the rates (num, contexts) and of the prompts (num, prompts)."""
        noise = generator.standard_normal((len(self._solution), num))
        drawn = (self._solution[:, None] + solve_triangular(self._factor.T, noise)).T
        return drawn[:, : self._num], drawn[:, self._num :]


def _factor(covariance: Array) -> Array:
    """Return a lower factor; what rounding made negative counts as 0."""
    size = len(covariance)
    return np.asarray(np.linalg.cholesky(covariance + JITTER * np.eye(size)), dtype=np.float64)
