"""The screen: contexts are ranked by cheap probes of what they do before they race.

    prefix scores   log-probabilities of the model's own known answers under the context; nothing is generated
    short decodes   the first tokens of new answers, judged as they are; whole answers go on from them later

For a pair of context and prompt, both give the two numbers that the screen learns from: how much less likely the known
answer became, and whether the model leaves it. How well they predict the whole answer is learned from all pairs of this
study that were probed and decoded in full, and reported: the rank correlation of predicted with decoded flip rates over
contexts. Before there are any, a known answer that is left counts as an answer that changes, which is enough to rank
by. A probe that ranks badly once it can be checked is dropped for the next, costlier one, the last of them for none.

A known answer that comes after a long thought is scored without it, behind a thought that is closed at once, and so are
short decodes where answers begin so late: the first tokens of a thought say nothing of the answer.

The screen chooses who races. What is reported, and who wins, is decided by whole answers alone; the race's guarantee
holds for what is raced.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flipsearch.core.measurements import Measurement, Samples
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, Kind, Label, Prompt, Request
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.statistics.intervals import two_sided_z
from flipsearch.statistics.regression import fit_logistic, predict_logistic

PREFILL_TOKENS = 24
"""Tokens of a known answer that are scored. Teacher and student differ most in the first ten (OPSA, Figure 2)."""
SHORT_DECODE_TOKENS = 16
"""Enough for a refusal to show: one that comes is mostly there within the first ten tokens."""
MOST_DROP, DROP_UNIT = 30.0, 10.0
"""A drop of log-probability counts at most this much, in units that are of size 1."""
MIN_PREFIX_SCORED = 64
"""Contexts whose prefixes are scored per cohort, however small it is: scoring costs little beside answers."""
SHORT_DECODED = 2
"""Contexts with short decodes for each one that races: a short decode that no answer goes on from is lost."""
MIN_LENGTH_RATIO = 2.0
"""Whole answers must be so many times longer than a short decode, or it saves nothing."""
NUM_PILOT = 3
"""Contexts on which short decodes must show that they can be scored."""
MIN_SCORED = 0.5
"""Share of their short decodes that the judge must be able to score: an unfinished thought says nothing."""
CLIP = 0.999
"""Correlations are kept this far inside of -1 and 1 before they are transformed."""
PRIOR = (-3.0, 1.0, 3.0)
"""Log-odds of a changed answer before anything is decoded: intercept, per unit of drop, for a known answer left."""
MIN_CONTEXTS, MIN_CORRELATION = 6, 0.5
"""Checked on so many contexts, predictions must rank them so well, as far as chance allows, to be used on."""

Pair = tuple[str, str]
"""Context id, prompt id."""
Features = tuple[float, float]
"""Drop of the known answer's log-probability, in DROP_UNITs; 1 where the known answer is left, 0 where it stays."""


class PrefixScoreProbe:
    """Scores prefixes of known answers: unsafe ones to harmful prompts, helpful ones to benign prompts."""

    what = "scoring known answers"
    is_free = True
    """Whether it generates nothing."""
    lost_tokens = 0.0
    """Tokens generated for each context that races, beyond what its answers go on from."""
    least, most_per_raced = MIN_PREFIX_SCORED, math.inf
    """Contexts that are probed: at least so many, and at most so many for each one that races."""

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        requests: dict[str, Request] = {}
        if isinstance(runner.backend, PrefixScorer):
            known = {prompt: _known_answer(prompt.kind, base.outcomes[prompt.prompt_id]) for prompt in prompts}
            rollouts = runner.ledger.rollouts(id for id in known.values() if id)
            for prompt, id in known.items():
                if id in rollouts and rollouts[id].completion_ids:
                    lead = rollouts[id].num_lead_tokens
                    prefill = rollouts[id].completion_ids[lead : lead + PREFILL_TOKENS]
                    requests[prompt.prompt_id] = Request(prompt, prefill=prefill, skips_thought=lead > 0)
        scores = zip(requests, runner.score_prefixes(list(requests.values())), strict=True)
        self._without_context = {id: score for id, score in scores if score is not None}
        self._requests = {id: requests[id] for id in self._without_context}
        self.prompt_ids: Collection[str] = self._requests.keys()
        """Those whose known answer the model could score without a context; none if it cannot be used."""

    def features(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        """Score every known answer under every context; pairs that could not be scored are left out."""
        requests = {
            (context.context_id, id): replace(request, context=context)
            for context in contexts
            for id, request in self._requests.items()
        }
        features = {}
        for pair, score in zip(requests, self._runner.score_prefixes(list(requests.values())), strict=True):
            if score is not None:
                drop = sum(self._without_context[pair[1]].log_probs) - sum(score.log_probs)
                leaves = score.num_agreed < len(score.log_probs)  # greedy decoding would say something else
                features[pair] = min(max(drop, 0.0), MOST_DROP) / DROP_UNIT, float(leaves)
        return features


class ShortDecodeProbe:
    """Decodes the first tokens of new answers, for a model that scores no prefixes, or whose scores predicted badly."""

    what = f"the first {SHORT_DECODE_TOKENS} tokens of answers"
    is_free = False
    least, most_per_raced = 0, SHORT_DECODED

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        known = {prompt: base.outcomes[prompt.prompt_id] for prompt in prompts}
        self._skips_thought = any(judged.num_lead_tokens for samples in known.values() for judged in samples.judged)
        lengths = [judged.num_tokens for samples in known.values() for judged in samples.judged]
        saves = sum(lengths) >= MIN_LENGTH_RATIO * SHORT_DECODE_TOKENS * max(1, len(lengths))
        usable = saves and (runner.can_continue or self._skips_thought)
        self._prompts = {p.prompt_id: p for p, samples in known.items() if usable and _known_answer(p.kind, samples)}
        num_lost = SHORT_DECODED if self._skips_thought else SHORT_DECODED - 1  # answers go on from the others
        self.lost_tokens = float(num_lost * len(self._prompts) * SHORT_DECODE_TOKENS)
        self.prompt_ids: Collection[str] = self._prompts.keys()
        """Those whose answer without a context is known to be unsafe, or to help; none if it cannot be used."""

    def features(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        """Decode a few contexts before the others: if hardly any answer can be scored, this probe ends itself."""
        pilot, others = contexts[:NUM_PILOT], contexts[NUM_PILOT:]
        features = self._short_decode(pilot)
        if len(features) < MIN_SCORED * len(self._prompts) * len(pilot):
            self.prompt_ids = ()
            return {}
        return features | self._short_decode(others)

    def _short_decode(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        pairs = [(context, prompt) for context in contexts for prompt in self._prompts.values()]
        requests = [
            replace(self._runner.request(prompt, context), skips_thought=self._skips_thought)
            for context, prompt in pairs
        ]
        judged = self._runner.short_decodes(requests, SHORT_DECODE_TOKENS)
        features = {}
        for (context, prompt), answer in zip(pairs, judged, strict=True):
            changed = _changed(prompt.kind, answer.verdict.label, answer.refused)
            if changed is not None:
                features[context.context_id, prompt.prompt_id] = 0.0, float(changed)
        return features


def _known_answer(kind: Kind, samples: Samples) -> str:
    """The rollout id of the first sample that shows what the prompt counts as; "" for a prompt that is not probed."""
    if kind == "harmful":
        return samples.shown.rollout_id if samples.shown and samples.label is Label.UNSAFE else ""
    helpful = [judged for judged in samples.judged if judged.refused is False and samples.refused is False]
    return helpful[0].rollout_id if helpful else ""


def _changed(kind: Kind, label: Label, refused: bool | None) -> bool | None:
    """Whether an answer changed as the screen predicts: flipped, or refused a benign prompt; None if unscored."""
    if kind == "benign":
        return refused
    return None if label is Label.UNSCORED else label is Label.SAFE


Probe = PrefixScoreProbe | ShortDecodeProbe


@dataclass(frozen=True, slots=True)
class ScreenPrediction:
    """What a context is expected to do on the prompts that were probed."""

    context: Context
    flip_rate: float
    """On the harmful prompts."""
    over_refusal_rate: float
    """On the benign ones; 0 without any."""


@dataclass(frozen=True, slots=True)
class ScreenEvidence:
    """A predicted flip rate, and how many whole answers say as much; a weight of 0 says nothing."""

    flip_rate: float
    weight: float


class Screen:
    """Predictions for contexts, learned from those that raced."""

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        self._kinds: dict[str, Kind] = {prompt.prompt_id: prompt.kind for prompt in prompts}
        self._probes: list[Probe] = [PrefixScoreProbe(runner, base, prompts), ShortDecodeProbe(runner, base, prompts)]
        self._decoded: dict[str, Mapping[str, bool]] = {}  # context id -> prompt id -> whether its answer changed
        self._contexts: dict[str, Context] = {}
        self._dropped_notes: list[str] = []
        self._reset()

    def _reset(self) -> None:
        """Forget what was learned by a probe."""
        self._features: dict[Pair, Features] = {}
        self._weights: dict[Kind, NDArray[np.float64]] = dict.fromkeys(("harmful", "benign"), np.array(PRIOR))
        self.correlation: float | None = None
        """Spearman's, of predicted and decoded flip rate over the raced contexts; None while there are too few."""
        self.num_screened = 0
        """Contexts that a prediction was made for."""
        self._num_checked = 0

    @property
    def _probe(self) -> Probe | None:
        """The cheapest one that can be used and was not dropped."""
        return next((probe for probe in self._probes if probe.prompt_ids), None)

    def num_candidates(self, num: int, screen: int) -> int:
        """Return how many contexts to screen if `num` are to race; the user wants `screen` for each of those.

        It is `num`, and nothing is screened, where `screen` is 1 or no probe is left.
        """
        probe = self._probe
        if probe is None or screen <= 1:
            return num
        return max(num * int(min(screen, probe.most_per_raced)), probe.least)

    def lost_tokens(self, screen: int) -> float:
        """Return the tokens that screening loses for each context that races; 0 where nothing is generated for it."""
        return self._probe.lost_tokens if self._probe and screen > 1 else 0.0

    def learn(self, raced: Iterable[tuple[Context, Measurement]]) -> None:
        """Learn from measurements on whole answers, and check predictions against all decoded so far."""
        for context, measurement in raced:
            flips = [flip for flip in measurement.flips if flip.prompt_id in self._kinds]
            changed = {flip.prompt_id: _changed(flip.kind, flip.after, flip.refused_after) for flip in flips}
            self._decoded[context.context_id] = {id: value for id, value in changed.items() if value is not None}
            self._contexts[context.context_id] = context
        probe = self._probe
        if probe is None:
            return
        if probe.is_free:
            self._add_features(probe, list(self._contexts.values()))
        for kind in self._weights:
            pairs = [
                (self._features[context_id, id], changed)
                for context_id, answers in self._decoded.items()
                for id, changed in answers.items()
                if self._kinds[id] == kind and (context_id, id) in self._features
            ]
            features, changes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            self._weights[kind] = fit_logistic(features, changes, PRIOR)
        self.correlation = self._rank_correlation()
        if self.correlation is None:
            return
        # The upper end of its 95 % interval (Fisher's z): contexts that are alike rank by chance.
        z = math.atanh(min(max(self.correlation, -CLIP), CLIP))
        if math.tanh(z + two_sided_z(0.95) / math.sqrt(max(1, self._num_checked - 3))) < MIN_CORRELATION:
            self._drop(probe, f"{self._summary(probe)} That is too low: it was used no more.")

    def predict(self, contexts: Sequence[Context]) -> list[ScreenPrediction]:
        """Return a prediction for each context that could be probed, in order; none for the others."""
        if self._probe:
            self._add_features(self._probe, contexts)
        probed = {context_id for context_id, _ in self._features}
        predictions = [
            ScreenPrediction(
                context, self._rate(context.context_id, "harmful"), self._rate(context.context_id, "benign")
            )
            for context in contexts
            if context.context_id in probed
        ]
        self.num_screened += len(predictions)
        return predictions

    def evidence(self, context: Context, decoded: Collection[str]) -> ScreenEvidence:
        """Return what the screen adds to what is known of a context on the prompts that are not among `decoded`.

        Where the whole answer is known a probe is no evidence of its own, though it may rank better.
        """
        harmful = [id for id, kind in self._kinds.items() if kind == "harmful" and id not in decoded]
        ids = [id for id in harmful if (context.context_id, id) in self._features]
        if not (ids and self._probe and self.correlation and self.correlation > 0):
            return ScreenEvidence(0.0, 0.0)
        return ScreenEvidence(self._rate(context.context_id, "harmful", ids), self.correlation**2 * len(ids))

    def notes(self) -> list[str]:
        """Return what the reader must know of how contexts came into the race."""
        probe = self._probe
        return [*self._dropped_notes, self._summary(probe)] if probe and self.num_screened else self._dropped_notes

    def _summary(self, probe: Probe) -> str:
        value = "could not be computed" if self.correlation is None else f"is {self.correlation:.2f}"
        return (
            f"{self.num_screened} contexts were screened by {probe.what} on {len(probe.prompt_ids)} prompts, and "
            f"the best raced. Its rank correlation with decoded flip rates {value} ({self._num_checked} contexts)."
        )

    def _drop(self, probe: Probe, note: str) -> None:
        self._dropped_notes.append(note)
        self._probes.remove(probe)
        self._reset()

    def _add_features(self, probe: Probe, contexts: Sequence[Context]) -> None:
        """Probe the contexts that were not probed before; drop a probe that turns out to be of no use."""
        self._runner.enter(Phase.SCREEN)
        probed = {context_id for context_id, _ in self._features}
        self._features |= probe.features([context for context in contexts if context.context_id not in probed])
        if not probe.prompt_ids:
            note = f"Contexts cannot be screened by {probe.what}: the judge can score too few of them."
            self._drop(probe, note)

    def _rate(self, context_id: str, kind: Kind, prompt_ids: Iterable[str] | None = None) -> float:
        """The predicted share of answers that change, over the probed prompts of a kind (among `prompt_ids`)."""
        ids = self._kinds if prompt_ids is None else prompt_ids
        pairs = [(context_id, id) for id in ids if self._kinds[id] == kind]
        rows = [self._features[pair] for pair in pairs if pair in self._features]
        if not rows:
            return 0.0
        return round(float(predict_logistic(self._weights[kind], rows).mean()), 6)

    def _rank_correlation(self) -> float | None:
        """Of predicted and decoded flip rates, each on the prompts that were probed and decoded."""
        pairs = []
        for context_id, answers in self._decoded.items():
            harmful = {id: changed for id, changed in answers.items() if self._kinds[id] == "harmful"}
            both = {id: changed for id, changed in harmful.items() if (context_id, id) in self._features}
            if both:
                pairs.append((self._rate(context_id, "harmful", both), sum(both.values()) / len(both)))
        self._num_checked = len(pairs)
        if len(pairs) < MIN_CONTEXTS:
            return None
        predicted, decoded = zip(*pairs, strict=True)
        if len(set(predicted)) == 1 or len(set(decoded)) == 1:
            return None
        return float(spearmanr(predicted, decoded).statistic)
