"""Forecasts of what contexts do, from their texts and from all outcomes so far: a linear mixed model, exactly solved.

    outcome of context c on prompt p = rate_c + prompt_p + noise        rates of contexts that are alike are alike

`rate` has a Gaussian prior whose covariance is a sum of kernels: sentences and words in common, the placement, the
length, readings of the screen where there are any, and a part of its own for each context. How much each counts is
chosen by marginal likelihood, anew for every forecast, so texts count for nothing where they foretell nothing. Because
all contexts of a study see the same prompts in the same order, what a prompt does to all of them is taken out by
`prompt`: two contexts are compared in pairs. The model is linear in the outcomes 0 and 1, with the variance of each
context's noise from its own rate: a logistic one was tried, and its Gaussian approximation puts rare refusals too high.

Forecasts are joint draws (num_draws, contexts) from the posterior: contexts without outcomes get theirs from the texts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from flipsearch.core.records import Context

Array = NDArray[np.float64]
JITTER = 1e-6
"""Added to the diagonal of covariances, so that they can be factored."""
SHRINK = 4.0
"""Outcomes at the mean of all that a context's own noise is estimated with."""
CONSTANT = 0.1
"""Prior variance of the rate that all contexts share."""
SCALES = (0.01, 0.03, 0.1)
"""Prior variance of rates that the texts account for."""
MIXES = ((1.0, 0.0), (0.7, 0.3), (0.3, 0.7), (0.0, 1.0))
"""Shares of sentences and of words in it."""
OWN = (0.05, 0.3)
"""Variance of a context's own part, as a share of it."""
OWN_ALONE = (0.005, 0.02, 0.06)
"""Variances of the own part where texts foretell nothing."""
PROMPTS = (0.003, 0.01, 0.03, 0.1)
"""Variances between prompts."""
MINOR = 0.05
"""Share of placement, and of length, in the variance."""
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Weights:
    """Prior variances of the parts of a rate, and of prompts."""

    sentences: float
    words: float
    minor: float
    own: float
    prompts: float = PROMPTS[1]


CANDIDATES = [
    Weights(scale * sentences, scale * words, scale * MINOR, scale * own)
    for scale in SCALES
    for sentences, words in MIXES
    for own in OWN
] + [Weights(0.0, 0.0, 0.0, own) for own in OWN_ALONE]


class TextKernels:
    """Similarities of contexts by what stands in their texts; what was taken apart once is kept."""

    def __init__(self) -> None:
        self._sentences: dict[str, int] = {}
        self._words: dict[str, int] = {}
        self._parts: dict[str, tuple[list[int], list[int]]] = {}

    def between(self, contexts: Sequence[Context]) -> tuple[Array, Array, Array]:
        """Return kernels (contexts, contexts) of sentences, of words, and of placement and length; mean diagonal 1."""
        parts = [self._parts_of(context) for context in contexts]
        sentences = _kernel([part[0] for part in parts], len(self._sentences))
        words = _kernel([part[1] for part in parts], len(self._words))
        places = np.array([context.placement for context in contexts])
        lengths = np.log([max(1, len(part[1])) for part in parts])
        lengths -= lengths.mean()
        length = np.outer(lengths, lengths) / max(float((lengths**2).mean()), JITTER)
        return sentences, words, (places[:, None] == places[None, :]) + length

    def _parts_of(self, context: Context) -> tuple[list[int], list[int]]:
        found = self._parts.get(context.text)
        if found is None:
            text = context.text.casefold()
            sentences = dict.fromkeys(part.strip() for part in _SENTENCE.split(text) if part.strip())
            words = dict.fromkeys(_WORD.findall(text))
            found = self._parts[context.text] = (
                [self._sentences.setdefault(sentence, len(self._sentences)) for sentence in sentences],
                [self._words.setdefault(word, len(self._words)) for word in words],
            )
        return found


def _kernel(rows: Sequence[Sequence[int]], num_columns: int) -> Array:
    present = np.zeros((len(rows), max(1, num_columns)))
    for row, columns in zip(present, rows, strict=True):
        row[list(columns)] = 1.0
    kernel: Array = present @ present.T / max(float(present.sum(axis=1).mean()), JITTER)
    return kernel


class RateModel:
    """The mixed model of one rate; `prior_mean` is what a context does of which nothing is known."""

    def __init__(self, prior_mean: float) -> None:
        self._mean, self._weights = prior_mean, CANDIDATES[10]

    def draws(self, kernels: tuple[Array, ...], outcomes: Array, num: int, generator: np.random.Generator) -> Array:
        """Return joint draws (num, contexts) of the rates over all prompts.

        `outcomes` (contexts, prompts) are 0, 1, or nan where nothing is known; a row may be all nan.
        """
        known = ~np.isnan(outcomes).all(axis=1)
        seen = np.flatnonzero(known)
        other = np.flatnonzero(~known)
        if len(seen) >= 4:
            self._choose_weights(tuple(kernel[np.ix_(seen, seen)] for kernel in kernels), outcomes[seen])
        prior = self._prior(kernels, self._weights)
        drawn = np.empty((num, len(outcomes)))
        if not len(seen):
            return self._mean + generator.standard_normal(drawn.shape) @ _factor(prior).T
        system = _System(prior[np.ix_(seen, seen)], self._mean, outcomes[seen], self._weights.prompts)
        rates, prompts = system.draws(num, generator)
        drawn[:, seen] = rates
        if len(other):
            gain = prior[np.ix_(other, seen)] @ system.precision
            left = prior[np.ix_(other, other)] - gain @ prior[np.ix_(seen, other)]
            drawn[:, other] = self._mean + (rates - self._mean) @ gain.T
            drawn[:, other] += generator.standard_normal((num, len(other))) @ _factor(left).T
        return drawn + prompts.mean(axis=1)[:, None]

    def _choose_weights(self, kernels: tuple[Array, ...], outcomes: Array) -> None:
        """Take the weights of the highest marginal likelihood, those of the prompts after the others."""

        def evidence(weights: Weights) -> float:
            return _System(self._prior(kernels, weights), self._mean, outcomes, weights.prompts).log_evidence

        prompts = self._weights.prompts
        tried = [Weights(w.sentences, w.words, w.minor, w.own, prompts) for w in CANDIDATES]
        best = max(tried, key=evidence)
        tried = [Weights(best.sentences, best.words, best.minor, best.own, variance) for variance in PROMPTS]
        self._weights = max(tried, key=evidence)

    def _prior(self, kernels: tuple[Array, ...], weights: Weights) -> Array:
        sentences, words, minor = kernels
        shared: Array = weights.sentences * sentences + weights.words * words + weights.minor * minor + CONSTANT
        return shared + (weights.own + JITTER) * np.eye(len(shared))


class _System:
    """The normal equations of rates and prompts; outcomes as in `RateModel.draws`, each row with at least one."""

    def __init__(self, prior: Array, prior_mean: float, outcomes: Array, prompt_variance: float) -> None:
        num, num_prompts = outcomes.shape
        known = ~np.isnan(outcomes)
        values = np.where(known, outcomes, 0.0)
        counts, sums = known.sum(axis=1), values.sum(axis=1)
        mean = (sums.sum() + 0.5) / (counts.sum() + 1.0)
        rates = np.clip((sums + SHRINK * mean) / (counts + SHRINK), 0.02, 0.98)
        weights = known / (rates * (1 - rates))[:, None]
        self.precision: Array = np.linalg.inv(prior)
        """Of the prior."""
        self._num = num
        normal = np.empty((num + num_prompts, num + num_prompts))
        normal[:num, :num] = self.precision + np.diag(weights.sum(axis=1))
        normal[num:, num:] = np.diag(weights.sum(axis=0) + 1 / prompt_variance)
        normal[:num, num:], normal[num:, :num] = weights, weights.T
        pull = self.precision.sum(axis=1) * prior_mean
        right = np.concatenate([(weights * values).sum(axis=1) + pull, (weights * values).sum(axis=0)])
        self._factor = np.linalg.cholesky(normal)
        self._solution = solve_triangular(self._factor.T, solve_triangular(self._factor, right, lower=True))
        squares = (weights * values**2).sum() + pull.sum() * prior_mean - right @ self._solution
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
    return np.linalg.cholesky(covariance + JITTER * np.eye(size))
