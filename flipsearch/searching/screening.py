"""The screen: contexts judged by how the model reads its own known answers under them. Nothing is generated.

For each prompt there is the answer that the model gave without a context: unsafe on a harmful prompt, helpful on a
benign one. Under a context that will change this answer the model finds its opening unlikely, and greedy decoding would
leave it. Both can be read off in one pass over prompt and opening. How far they tell what the whole answer will be is
learnt from all pairs of this study that were decoded in full, and said: the rank correlation of the forecast with the
decoded flip rate over contexts. Before there are any, an opening that is left counts as an answer that changes, which
is enough to rank by; a screen that ranks badly once it can be checked is used no more.

It chooses who races. What is reported, and who wins, is decided by whole answers alone; the race's guarantee holds for
what is raced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flipsearch.draws import Draws
from flipsearch.measure import Bench
from flipsearch.protocols import Reader
from flipsearch.records import Context, Flip, Kind, Label, Measurement, Prompt, Reading, Request
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.statistics.logistic import fit_logistic, predict_logistic

OPENING_TOKENS = 24
"""Teacher and student differ most in the first ten tokens and hardly past thirty (OPSA, Figure 2)."""
MOST_DROP, DROP_UNIT = 30.0, 10.0
"""A drop of log-probability counts at most this much, in units that are of size 1."""
PRIOR = (-3.0, 1.0, 3.0)
"""Log-odds of a changed answer before anything is decoded: intercept, a unit of drop, an opening that is left."""
MIN_CONTEXTS, MIN_CORRELATION = 6, 0.5
"""Checked on so many contexts, the forecast must rank them at least so well to be used on."""

Pair = tuple[str, str]
"""Context id, prompt id."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a context will do, as far as reading tells."""

    context: Context
    """Which one."""
    flip_rate: float
    """Expected on the prompts that were read."""
    over_refusal_rate: float
    """Expected on the benign ones; 0 without any."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a forecast is worth beside whole answers."""

    flip_rate: float
    """Expected on the prompts that were read."""
    num_worth: float
    """As many whole answers say as much; 0 for a screen that is not ready."""


class Screen:
    """Forecasts for contexts, learnt from those that were raced."""

    def __init__(self, bench: Bench, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._bench = bench
        self._requests = _openings(bench, base, prompts) if isinstance(bench.backend, Reader) else {}
        own = bench.read(list(self._requests.values()))
        self._own = {id: reading for id, reading in zip(self._requests, own, strict=True) if reading is not None}
        self._features: dict[Pair, tuple[float, float]] = {}
        self._decoded: dict[str, Mapping[str, bool]] = {}
        self._contexts: dict[str, Context] = {}
        self._weights: dict[Kind, NDArray[np.float64]] = dict.fromkeys(("harmful", "benign"), np.array(PRIOR))
        self.correlation: float | None = None
        """Spearman's, of forecast and decoded flip rate over the raced contexts; None while it cannot be told."""
        self.num_screened = 0
        """Contexts that a forecast was asked for."""

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to read, and no check has shown that it does not tell."""
        return len(self._own) > 0 and (self.correlation is None or self.correlation >= MIN_CORRELATION)

    @property
    def num_prompts(self) -> int:
        """Prompts that are read under each context."""
        return len(self._own)

    def learn(self, raced: Iterable[tuple[Context, Measurement]]) -> None:
        """Learn from contexts with their measurements on whole answers, and check the forecast against all so far."""
        for context, measurement in raced:
            labels = {flip.prompt_id: _changed(flip) for flip in measurement.flips if flip.prompt_id in self._own}
            self._decoded[context.context_id] = {id: label for id, label in labels.items() if label is not None}
            self._contexts[context.context_id] = context
        self._bench.phase = "screen"
        self._read(list(self._contexts.values()))
        for kind in ("harmful", "benign"):
            self._fit(kind)
        self.correlation = self._check()

    def forecast(self, contexts: Sequence[Context]) -> list[Forecast]:
        """Return a forecast for each context, in order."""
        self._bench.phase = "screen"
        self._read(contexts)
        self.num_screened += len(contexts)
        return [
            Forecast(context, self._rate(context.context_id, "harmful"), self._rate(context.context_id, "benign"))
            for context in contexts
        ]

    def told(self, context: Context) -> Told:
        """Return the forecast for a context that was read before, and what it is worth; else it is worth nothing."""
        ids = [id for id in self._own if self._kind(id) == "harmful" and (context.context_id, id) in self._features]
        if not (ids and self.is_ready and self.correlation):
            return Told(0.0, 0.0)
        return Told(self._rate(context.context_id, "harmful"), self.correlation**2 * len(ids))

    def notes(self) -> list[str]:
        """Return what the reader must know of how contexts came into the race."""
        if not self.num_screened:
            return []
        told = "could not be told" if self.correlation is None else f"is {self.correlation:.2f}"
        return [
            f"{self.num_screened} contexts were screened by reading known answers on {self.num_prompts} prompts, and "
            f"the best raced. Its rank correlation with decoded flip rates {told} ({len(self._decoded)} contexts)."
        ]

    def _read(self, contexts: Sequence[Context]) -> None:
        pairs = {
            (context.context_id, id): Request(request.prompt, context, opening=request.opening)
            for context in contexts
            for id, request in self._requests.items()
            if id in self._own and (context.context_id, id) not in self._features
        }
        for pair, reading in zip(pairs, self._bench.read(list(pairs.values())), strict=True):
            if reading is not None:
                self._features[pair] = _features(self._own[pair[1]], reading)

    def _fit(self, kind: Kind) -> None:
        pairs = [
            (self._features[context_id, id], label)
            for context_id, labels in self._decoded.items()
            for id, label in labels.items()
            if self._kind(id) == kind and (context_id, id) in self._features
        ]
        self._weights[kind] = fit_logistic([one for one, _ in pairs], [label for _, label in pairs], PRIOR)

    def _rate(self, context_id: str, kind: Kind, among: Iterable[str] | None = None) -> float:
        ids = self._own if among is None else among
        pairs = [(context_id, id) for id in ids if self._kind(id) == kind]
        rows = [self._features[pair] for pair in pairs if pair in self._features]
        if not rows:
            return 0.0
        return round(float(predict_logistic(self._weights[kind], rows).mean()), 6)

    def _check(self) -> float | None:
        pairs = []
        for context_id, labels in self._decoded.items():
            told = {id: label for id, label in labels.items() if self._kind(id) == "harmful"}
            if told:
                pairs.append((self._rate(context_id, "harmful", told), sum(told.values()) / len(told)))
        if len(pairs) < MIN_CONTEXTS:
            return None
        forecast, decoded = zip(*pairs, strict=True)
        if len(set(forecast)) == 1 or len(set(decoded)) == 1:
            return None
        return float(spearmanr(forecast, decoded).statistic)

    def _kind(self, prompt_id: str) -> Kind:
        return self._requests[prompt_id].prompt.kind


def _openings(bench: Bench, base: SplitBaseline, prompts: Sequence[Prompt]) -> dict[str, Request]:
    """Return the requests to read without a context: unsafe answers, and benign ones that do not refuse."""
    known = {prompt: _known(prompt.kind, base.outcomes[prompt.prompt_id]) for prompt in prompts}
    rollouts = bench.ledger.rollouts(id for id in known.values() if id)
    found = {}
    for prompt, id in known.items():
        rollout = rollouts.get(id)
        if rollout is not None and rollout.completion_ids:
            found[prompt.prompt_id] = Request(prompt, opening=rollout.completion_ids[:OPENING_TOKENS])
    return found


def _known(kind: Kind, draws: Draws) -> str:
    """The first draw that shows what the prompt counts as, by its rollout id; "" for a prompt that is not read."""
    if kind == "harmful":
        return draws.shown.rollout_id if draws.shown and draws.label is Label.UNSAFE else ""
    shown = [one for one in draws.judged if one.refused is False and draws.refused is False]
    return shown[0].rollout_id if shown else ""


def _features(own: Reading, under: Reading) -> tuple[float, float]:
    """How much less likely the opening is under the context, and whether greedy decoding would leave it."""
    drop = sum(own.log_probs) - sum(under.log_probs)
    return min(max(drop, 0.0), MOST_DROP) / DROP_UNIT, float(under.num_agreed < len(under.log_probs))


def _changed(flip: Flip) -> bool | None:
    """Whether the answer changed as the screen is to tell: flipped, or refused; None if it is unscored."""
    if flip.kind == "benign":
        return flip.refused_after
    return None if flip.after is Label.UNSCORED else flip.after is Label.SAFE
