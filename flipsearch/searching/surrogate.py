"""The surrogate: what contexts are likely to do, from their texts, their prefix scores and all outcomes so far.

It is a mixed model of flip rates, and one of refused benign prompts: sentences and words in common, placement, length
and prefix scores predict a context that was not measured, and correct one that was measured on few prompts. What a
context is worth is its flip rate where it is within the cap, else nothing. By joint samples from the posterior contexts
are proposed, arms promoted, parents chosen and the search ended; what is reported rests on the answers alone.

    outcome of context c on prompt p = rate_c + prompt_p + noise        rates of contexts that are alike are alike

`rate` has a Gaussian prior whose covariance is a sum of kernels, and a mean that scores may raise. How much each part
counts is chosen by marginal likelihood, so that texts count for nothing where they predict nothing. All contexts of a
study see the same prompts in the same order, so what a prompt does to all of them is taken out by `prompt`: two
contexts are compared in pairs. The variance of a context's noise is that of its own rate. The model is linear in the
outcomes: a logistic one was tried, and its Gaussian approximation puts rare outcomes too high.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from flipsearch.core.measurements import Flip
from flipsearch.core.records import Context, Kind
from flipsearch.core.studies import RefusalCap
from flipsearch.searching.baseline import Arm, KnownAnswers, SplitBaseline

NUM_SAMPLES = 256
USUAL_FLIPS, USUAL_REFUSALS = 0.3, 0.05
"""What a context does of which nothing is known."""
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"\w+")
Array = NDArray[np.float64]
JITTER = 1e-6
"""Added to the diagonal of covariances, so that they can be factored."""
SHRINK = 4.0
"""Outcomes at the mean of all that a context's own noise is estimated with."""
MIN_CONTEXTS = 4
"""Contexts with outcomes that it takes to choose how much their parts count."""
CONSTANT = 0.1
"""Prior variance of the rate that all contexts share."""
SCALES = (0.03, 0.1)
"""Prior variance of rates that the texts account for. Not less, though early outcomes that are all near 0 ask for it:
then no text would seem to be better than another, and what the few that flip have in common would not be tried."""
MIXES = ((1.0, 0.0), (0.7, 0.3), (0.3, 0.7), (0.0, 1.0))
"""Shares of sentences and of words in it."""
OWN = (0.05, 0.3)
"""Variance of a context's own part, as a share of it."""
OWN_ALONE = (0.03, 0.1)
"""Variances of the own part where texts predict nothing."""
LEAST_NOISE = 0.25
"""Share of the variance of a context's outcomes that is noise at least."""
PROMPTS = (0.003, 0.01, 0.03, 0.1, 0.2)
"""Variances between prompts."""
SCORE_EFFECTS = (0.0, 0.05, 0.1, 0.2)
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
    scores: float = SCORE_EFFECTS[2]


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
        self._mean, self.weights = prior_mean, CANDIDATES[2]
        self._chosen_by = np.empty((0, 0))
        """Outcomes that the weights were chosen by: they are chosen anew when there are others."""

    def sample(self, features: ContextFeatures, outcomes: Array, num: int, generator: np.random.Generator) -> Array:
        """Return joint samples (num, contexts) of the rates over all prompts.

        `outcomes` (contexts, prompts) are in [-1, 1], nan where nothing is known; a row may be all nan.
        """
        known = ~np.isnan(outcomes).all(axis=1)
        seen, other = np.flatnonzero(known), np.flatnonzero(~known)
        if len(seen) >= MIN_CONTEXTS and not np.array_equal(outcomes[seen], self._chosen_by, equal_nan=True):
            self._chosen_by = outcomes[seen]
            self.weights = _likeliest(self.weights, features.of(seen), self._mean, outcomes[seen])
        mean, prior = _prior(self.weights, features, self._mean)
        sampled = np.empty((num, len(outcomes)))
        if not len(seen):
            sampled[:] = mean + generator.standard_normal(sampled.shape) @ _factor(prior).T
            return sampled
        precision = np.asarray(np.linalg.inv(prior[np.ix_(seen, seen)]))
        both = _sample_posterior(mean[seen], precision, outcomes[seen], self.weights.prompts, num, generator)
        rates, prompts = both[:, : len(seen)], both[:, len(seen) :]
        sampled[:, seen] = rates
        if len(other):
            coefficients = prior[np.ix_(other, seen)] @ precision
            left = prior[np.ix_(other, other)] - coefficients @ prior[np.ix_(seen, other)]
            sampled[:, other] = mean[other] + (rates - mean[seen]) @ coefficients.T
            sampled[:, other] += generator.standard_normal((num, len(other))) @ _factor(left).T
        sampled += prompts.mean(axis=1)[:, None]
        return sampled


@dataclass(frozen=True, slots=True)
class PosteriorSamples:
    """Joint samples (NUM_SAMPLES, contexts) from the posterior of what contexts do on all search prompts."""

    flips: Array
    refusals: Array
    """Of benign prompts, as the cap counts them."""
    worth: Array
    """The flip rate within the caps, else 0."""


class Surrogate:
    """What is known of the contexts of one study; the same samples for the same seed, arms and order of calls."""

    def __init__(
        self, base: SplitBaseline, prefix_scores: KnownAnswers, cap: RefusalCap, seed: int, most_lost: float = 1.0
    ) -> None:
        self.prefix_scores, self._cap, self._most_lost = prefix_scores, cap, most_lost
        self._columns: dict[Kind, dict[str, int]] = {
            kind: {prompt.prompt_id: i for i, prompt in enumerate(p for p in base.to_flip() if p.kind == kind)}
            for kind in ("harmful", "benign")
        }
        self._is_capped = base.over_refusal_rate.n > 0
        """Whether refusals are measured at all; a judge that does not detect them breaks no cap."""
        self._texts = TextFeatures()
        self._rows: dict[tuple[str, int, Kind], Array] = {}
        """Context id, rung and kind -> outcomes: an arm is in every sample, and measured once per rung."""
        self._flips, self._refusals = RateModel(USUAL_FLIPS), RateModel(USUAL_REFUSALS)
        self._generator = np.random.default_rng(seed)

    def sample(self, arms: Sequence[Arm], contexts: Sequence[Context] = ()) -> PosteriorSamples:
        """Return samples for arms, and then for contexts that were not measured; at least one of both."""
        everything = [*(arm.context for arm in arms), *contexts]
        flips = self._sample_rates(self._flips, arms, everything, "harmful")
        refusals = self._sample_rates(self._refusals, arms, everything, "benign")
        num_benign = len(self._columns["benign"])
        # A cap of 0 allows no refusal among the prompts; a rate is hardly ever exactly 0.
        most = self._cap.most + 0.5 / num_benign if num_benign else 1.0
        breaks_cap = (refusals > most) & self._is_capped
        # Not predicted from texts: an arm whose answers have clearly lost too much cannot win, and is left behind.
        lost = [arm.search.contraction for arm in arms]
        breaks_cap[:, [i for i, c in enumerate(lost) if c and c.value is not None and c.low > self._most_lost]] = True
        return PosteriorSamples(flips, refusals, np.where(breaks_cap, 0.0, np.maximum(flips, 0.0)))

    def _sample_rates(self, model: RateModel, arms: Sequence[Arm], contexts: Sequence[Context], kind: Kind) -> Array:
        features = self._texts.of(contexts, self.prefix_scores.of(contexts, kind))
        return model.sample(features, self._outcomes(arms, kind, len(contexts)), NUM_SAMPLES, self._generator)

    def notes(self) -> list[str]:
        """Return what the reader must know of how contexts came into the race."""
        if not self.prefix_scores.num_contexts:
            return []
        num, num_prompts = self.prefix_scores.num_contexts, self.prefix_scores.num_prompts
        return [
            f"{num} contexts were screened by scoring known answers to {num_prompts} prompts under them; how much that "
            "says of whole answers was learned from those that raced."
        ]

    def _outcomes(self, arms: Sequence[Arm], kind: Kind, num_rows: int) -> Array:
        """Return outcomes (num_rows, prompts), nan where nothing is known; the rows of the arms come first."""
        columns = self._columns[kind]
        outcomes = np.full((num_rows, len(columns)), np.nan)
        for number, arm in enumerate(arms):
            key = arm.context.context_id, arm.rung, kind
            if key not in self._rows:
                row = self._rows[key] = outcomes[number].copy()
                for flip in arm.search.flips:
                    if flip.kind == kind:
                        row[columns[flip.prompt_id]] = self._outcome(flip)
            outcomes[number] = self._rows[key]
        return outcomes

    def _outcome(self, flip: Flip) -> float:
        if flip.kind == "harmful":
            return float("nan") if flip.counts_as_flip is None else float(flip.counts_as_flip)
        if flip.refused_after is None or flip.refused_before is None:
            return float("nan")
        return float(flip.refused_after) - (float(flip.refused_before) if self._cap.counts == "added" else 0.0)


class TextFeatures:
    """Makes the features of contexts from their texts; a text that was taken apart once is kept."""

    def __init__(self) -> None:
        self._sentences: dict[str, int] = {}
        self._words: dict[str, int] = {}
        self._parts: dict[str, tuple[list[int], list[int]]] = {}

    def of(self, contexts: Sequence[Context], prefix_scores: Sequence[float]) -> ContextFeatures:
        """Return the features of contexts; `prefix_scores` are nan for those without one."""
        parts = [self._parts_of(context.text) for context in contexts]
        sentences = _kernel([part[0] for part in parts], len(self._sentences))
        words = _kernel([part[1] for part in parts], len(self._words))
        places = np.array([context.placement for context in contexts])
        lengths = np.log([max(1, len(part[1])) for part in parts])
        lengths -= lengths.mean()
        length = np.outer(lengths, lengths) / max(float((lengths**2).mean()), JITTER)
        return ContextFeatures(
            sentences, words, (places[:, None] == places[None, :]) + length, _standardised(prefix_scores)
        )

    def _parts_of(self, text: str) -> tuple[list[int], list[int]]:
        parts = self._parts.get(text)
        if parts is None:
            folded = text.casefold()
            sentences = dict.fromkeys(part.strip() for part in _SENTENCE.split(folded) if part.strip())
            words = dict.fromkeys(_WORD.findall(folded))
            parts = self._parts[text] = (
                [self._sentences.setdefault(sentence, len(self._sentences)) for sentence in sentences],
                [self._words.setdefault(word, len(self._words)) for word in words],
            )
        return parts


def _kernel(rows: Sequence[Sequence[int]], num_columns: int) -> Array:
    present = np.zeros((len(rows), max(1, num_columns)))
    for row, columns in zip(present, rows, strict=True):
        row[list(columns)] = 1.0
    kernel: Array = present @ present.T / max(float(present.sum(axis=1).mean()), JITTER)
    return kernel


def _standardised(scores: Sequence[float]) -> Array:
    values = np.array(scores)
    if np.isnan(values).all():
        return np.zeros(len(values))
    spread = max(float(np.nanstd(values)), JITTER)
    standardised: Array = np.nan_to_num(np.clip((values - np.nanmean(values)) / spread, -3.0, 3.0))
    return standardised


def _likeliest(weights: Weights, features: ContextFeatures, mean: float, outcomes: Array) -> Weights:
    """Return the weights of the highest marginal likelihood: those of the texts first, then the two others."""
    kept = weights.prompts
    seen = {variance: _without_prompts(outcomes, variance) for variance in {kept, *PROMPTS}}

    def evidence(candidate: Weights) -> float:
        (means, prior), (rates, noise, constant) = _prior(candidate, features, mean), seen[candidate.prompts]
        factor = np.linalg.cholesky(prior + noise)
        errors = solve_triangular(factor, rates - means, lower=True, check_finite=False)
        return constant - float(errors @ errors) / 2 - float(np.log(np.diag(factor)).sum())

    weights = max((replace(w, prompts=kept, scores=weights.scores) for w in CANDIDATES), key=evidence)
    weights = max((replace(weights, prompts=variance) for variance in PROMPTS), key=evidence)
    if features.scores.any():
        weights = max((replace(weights, scores=score_effect) for score_effect in SCORE_EFFECTS), key=evidence)
    return weights


def _without_prompts(outcomes: Array, variance: float) -> tuple[Array, Array, float]:
    """Return the rates (contexts,) that outcomes show once prompts are integrated out, the covariance of their noise,
    and the part of the log evidence that does not depend on the prior of the rates.
    """
    weights, values = _weighted(outcomes, variance)
    prompts, sums = weights.sum(axis=0) + 1 / variance, (weights * values).sum(axis=0)
    precision = np.diag(weights.sum(axis=1)) - (weights / prompts) @ weights.T
    pull = (weights * values).sum(axis=1) - weights @ (sums / prompts)
    noise = np.linalg.inv(precision)
    rates = noise @ pull
    squares = (weights * values**2).sum() - (sums**2 / prompts).sum() - pull @ rates
    volume = np.log(weights[weights > 0]).sum() - np.log(prompts * variance).sum() - np.linalg.slogdet(precision)[1]
    return rates, noise, float(volume - squares) / 2


def _prior(weights: Weights, features: ContextFeatures, mean: float) -> tuple[Array, Array]:
    covariance: Array = weights.sentences * features.sentences + weights.words * features.words
    covariance += weights.minor * features.minor + CONSTANT
    covariance += weights.scores**2 * np.outer(features.scores, features.scores)
    covariance += (weights.own + JITTER) * np.eye(len(covariance))
    return mean + weights.scores * features.scores, covariance


def _weighted(outcomes: Array, prompt_variance: float) -> tuple[Array, Array]:
    """Return the precision of each outcome beside its context and prompt, and its value; both 0 where it is unknown."""
    known = ~np.isnan(outcomes)
    values = np.where(known, outcomes, 0.0)
    counts, sums = known.sum(axis=1), values.sum(axis=1)
    overall = (sums.sum() + 0.5) / (counts.sum() + 1.0)
    rates = np.clip((sums + SHRINK * overall) / (counts + SHRINK), 0.02, 0.98)
    variances = rates * (1 - rates)  # of which the prompts have their part
    return known / np.maximum(variances - prompt_variance, LEAST_NOISE * variances)[:, None], values


def _sample_posterior(
    mean: Array, precision: Array, outcomes: Array, prompt_variance: float, num: int, generator: np.random.Generator
) -> Array:
    """Return samples (num, contexts + prompts) of the rates, with the prior's mean and precision, and of the prompts.

    Outcomes are as in `RateModel.sample`, each row with at least one.
    """
    weights, values = _weighted(outcomes, prompt_variance)
    size = len(precision)
    normal = np.empty((sum(outcomes.shape),) * 2)
    normal[:size, :size] = precision + np.diag(weights.sum(axis=1))
    normal[size:, size:] = np.diag(weights.sum(axis=0) + 1 / prompt_variance)
    normal[:size, size:], normal[size:, :size] = weights, weights.T
    right = np.concatenate([(weights * values).sum(axis=1) + precision @ mean, (weights * values).sum(axis=0)])
    factor = np.linalg.cholesky(normal)
    solution = solve_triangular(factor.T, solve_triangular(factor, right, lower=True))
    noise = generator.standard_normal((len(solution), num))
    sampled: Array = (solution[:, None] + solve_triangular(factor.T, noise)).T
    return sampled


def _factor(covariance: Array) -> Array:
    """Return a lower factor; what rounding made negative counts as 0."""
    size = len(covariance)
    return np.asarray(np.linalg.cholesky(covariance + JITTER * np.eye(size)), dtype=np.float64)
