"""The surrogate: what contexts are likely to do, from their texts, their prefix scores and all outcomes so far.

It is a mixed model (statistics.mixed_model) of flip rates, and one of refused benign prompts: sentences and words in
common, placement, length and prefix scores predict a context that was not measured, and correct one that was measured
on few prompts. What a context is worth is its flip rate where it is within the cap, else nothing. By joint samples from
the posterior contexts are proposed, arms promoted, parents chosen and the search ended; what is reported rests on the
answers alone.

A prefix score is what a model that scores prefixes thinks of its known answers under a context. It is one more feature
here; how much it predicts is estimated from whole answers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from flipsearch.core.measurements import Flip, Samples
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, Kind, Label, Prompt, Request
from flipsearch.core.studies import RefusalCap
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.race import Arm
from flipsearch.statistics.mixed_model import JITTER, Array, ContextFeatures, RateModel

NUM_SAMPLES = 256
USUAL_FLIPS, USUAL_REFUSALS = 0.3, 0.05
"""What a context does of which nothing is known."""
PREFILL_TOKENS = 24
"""Tokens of a known answer that are scored. Teacher and student differ most in the first ten (OPSA, Figure 2)."""
MOST_DROP, DROP_UNIT = 30.0, 10.0
"""A drop of log-probability counts at most this much, in units that are of size 1."""
INTERCEPT, PER_DROP, IF_LEFT = -3.0, 1.0, 3.0
"""Log-odds of a changed answer; the surrogate uses the order and the spacing of scores, not their level."""
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"\w+")


class KnownAnswers:
    """The scores of contexts on `prompts`; none where the model cannot score prefixes, or no known answer.

    The first tokens of the known unsafe answer to a harmful prompt, or of the known helpful answer to a benign one, are
    scored under a context: nothing is generated. The score is the share of answers that are expected to change: by how
    much less likely their beginnings became, and whether greedy decoding would say something else. An answer that comes
    after a long thought is scored without it, behind a thought that is closed at once: its first tokens say nothing.
    """

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
        self._without_context = {id: sum(score.log_probs) for id, score in scores if score is not None}
        self._requests = {id: requests[id] for id in self._without_context}
        self._known: dict[str, dict[Kind, float]] = {}
        read = ((request.prompt.text, request.prefill) for request in self._requests.values())
        self._num_read = sum(runner.backend.count_tokens(text) + len(prefill) for text, prefill in read)

    def num_read(self, context: Context) -> int:
        """Return the tokens that are read to score a context, where the model shares no beginning of its prompts."""
        return self._num_read + len(self._requests) * self._runner.backend.count_tokens(context.text)

    @property
    def num_prompts(self) -> int:
        """Known answers that can be scored; 0: there are no scores."""
        return len(self._requests)

    @property
    def num_contexts(self) -> int:
        """Contexts that were scored."""
        return len(self._known)

    def add(self, contexts: Sequence[Context]) -> None:
        """Score the known answers under the contexts that were not scored before."""
        new = [context for context in contexts if context.context_id not in self._known]
        if not (new and self._requests):
            return
        self._runner.enter(Phase.SCREEN)
        pairs = [(context, request) for context in new for request in self._requests.values()]
        requests = [replace(request, context=context) for context, request in pairs]
        shares_of: dict[str, dict[Kind, list[float]]] = {context.context_id: {} for context in new}
        for (context, request), score in zip(pairs, self._runner.score_prefixes(requests), strict=True):
            if score is not None:
                drop = self._without_context[request.prompt.prompt_id] - sum(score.log_probs)
                is_left = score.num_agreed < len(score.log_probs)
                odds = INTERCEPT + PER_DROP * min(max(drop, 0.0), MOST_DROP) / DROP_UNIT + IF_LEFT * is_left
                shares_of[context.context_id].setdefault(request.prompt.kind, []).append(float(expit(odds)))
        for id, shares in shares_of.items():
            self._known[id] = {kind: float(np.mean(of_kind)) for kind, of_kind in shares.items()}

    def of(self, contexts: Sequence[Context], kind: Kind) -> list[float]:
        """Return the scores of contexts on one kind of prompt, nan for those without one."""
        return [self._known.get(context.context_id, {}).get(kind, float("nan")) for context in contexts]


def _known_answer(kind: Kind, samples: Samples) -> str:
    """The rollout id of the first sample that shows what the prompt counts as; "" for a prompt that is not scored."""
    if kind == "harmful":
        return samples.shown.rollout_id if samples.shown and samples.label is Label.UNSAFE else ""
    helpful = [judged for judged in samples.judged if judged.refused is False and samples.refused is False]
    return helpful[0].rollout_id if helpful else ""


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
            return float("nan") if flip.decides is None else float(flip.decides)
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
