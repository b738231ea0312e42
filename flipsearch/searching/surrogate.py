"""The surrogate: what contexts are likely to do, from their texts, their prefix scores and all outcomes so far.

It is a mixed model (statistics.mixed_model) of flip rates, and one of refused benign prompts: sentences and words in
common, placement, length and prefix scores predict a context that was not measured, and correct one that was measured
on few prompts. What a context is worth is its flip rate where it is within the cap, else nothing. By joint draws from
the posterior contexts are proposed, arms promoted, parents chosen and the search ended; what is reported rests on the
answers alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flipsearch.core.measurements import Flip
from flipsearch.core.records import Context, Kind, Label
from flipsearch.core.studies import RefusalCap
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.prefix_scores import KnownAnswers
from flipsearch.searching.race import Arm
from flipsearch.statistics.mixed_model import JITTER, Array, ContextFeatures, RateModel

NUM_DRAWS = 256
USUAL_FLIPS, USUAL_REFUSALS = 0.3, 0.05
"""What a context does of which nothing is known."""
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class PosteriorDraws:
    """Joint draws (NUM_DRAWS, contexts) of what contexts do on all search prompts."""

    flips: Array
    refusals: Array
    """Of benign prompts, as the cap counts them."""
    worth: Array
    """The flip rate where the refusals are within the cap, else 0."""


class Surrogate:
    """What is known of the contexts of one study; the same draws for the same seed, arms and order of calls."""

    def __init__(self, base: SplitBaseline, prefix_scores: KnownAnswers, cap: RefusalCap, seed: int) -> None:
        self.prefix_scores, self._cap = prefix_scores, cap
        self._columns: dict[Kind, dict[str, int]] = {
            kind: {prompt.prompt_id: i for i, prompt in enumerate(p for p in base.to_flip() if p.kind == kind)}
            for kind in ("harmful", "benign")
        }
        self._is_capped = base.over_refusal_rate.n > 0
        """Whether refusals are measured at all; a judge that does not detect them breaks no cap."""
        self._texts = TextFeatures()
        self._rows: dict[tuple[str, int, Kind], Array] = {}
        """Context id, rung and kind -> outcomes: an arm is asked about in every draw, and measured once a rung."""
        self._flips, self._refusals = RateModel(USUAL_FLIPS), RateModel(USUAL_REFUSALS)
        self._generator = np.random.default_rng(seed)

    def draw(self, arms: Sequence[Arm], contexts: Sequence[Context] = ()) -> PosteriorDraws:
        """Return draws for arms, and then for contexts that were not measured; at least one of both."""
        everything = [*(arm.context for arm in arms), *contexts]
        flips = self._draws(self._flips, arms, everything, "harmful")
        refusals = self._draws(self._refusals, arms, everything, "benign")
        num_benign = len(self._columns["benign"])
        # A cap of 0 asks for no refusal among the prompts; a rate is hardly ever exactly 0.
        most = self._cap.most + 0.5 / num_benign if num_benign else 1.0
        breaks_cap = (refusals > most) & self._is_capped
        return PosteriorDraws(flips, refusals, np.where(breaks_cap, 0.0, np.maximum(flips, 0.0)))

    def _draws(self, model: RateModel, arms: Sequence[Arm], contexts: Sequence[Context], kind: Kind) -> Array:
        features = self._texts.of(contexts, self.prefix_scores.of(contexts, kind))
        return model.draws(features, self._outcomes(arms, kind, len(contexts)), NUM_DRAWS, self._generator)

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
            return float("nan") if flip.after is Label.UNSCORED else float(flip.flipped)
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
