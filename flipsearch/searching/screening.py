"""The screen: contexts judged by cheap looks at what they do (searching.probes), before they race.

How far a look tells what the whole answer will be is learnt from all pairs of this study that were looked at and
decoded in full, and said: the rank correlation of the forecast with the decoded flip rate over contexts. Before there
are any, a known answer that is left counts as an answer that changes, which is enough to rank by. A probe that ranks
badly once it can be checked is put away for the next, costlier one, the last of them for none.

It chooses who races. What is reported, and who wins, is decided by whole answers alone; the race's guarantee holds for
what is raced.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flipsearch.bench import Bench
from flipsearch.records import Context, Flip, Kind, Label, Measurement, Prompt
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.probes import Features, GlimpseProbe, Pair, Probe, ReadingProbe
from flipsearch.statistics.intervals import two_sided_z
from flipsearch.statistics.logistic import fit_logistic, predict_logistic

CLIP = 0.999
"""Correlations are held off 1 by this before they are transformed."""
PRIOR = (-3.0, 1.0, 3.0)
"""Log-odds of a changed answer before anything is decoded: intercept, a unit of drop, a known answer that is left."""
MIN_CONTEXTS, MIN_CORRELATION = 6, 0.5
"""Checked on so many contexts, the forecast must rank them so well, as far as chance allows, to be used on."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a context will do, as far as a look tells."""

    context: Context
    """Which one."""
    flip_rate: float
    """Expected on the harmful prompts that were looked at."""
    over_refusal_rate: float
    """Expected on the benign ones; 0 without any."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a forecast is worth beside whole answers."""

    flip_rate: float
    """Expected on those prompts."""
    num_worth: float
    """As many whole answers say as much; 0 for a screen that is not ready."""


class Screen:
    """Forecasts for contexts, learnt from those that were raced."""

    def __init__(self, bench: Bench, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._bench = bench
        self._kinds: dict[str, Kind] = {prompt.prompt_id: prompt.kind for prompt in prompts}
        self._probes: list[Probe] = [ReadingProbe(bench, base, prompts), GlimpseProbe(bench, base, prompts)]
        self._decoded: dict[str, Mapping[str, bool]] = {}
        self._contexts: dict[str, Context] = {}
        self._checks: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._features: dict[Pair, Features] = {}
        self._weights: dict[Kind, NDArray[np.float64]] = dict.fromkeys(("harmful", "benign"), np.array(PRIOR))
        self.correlation: float | None = None
        """Spearman's, of forecast and decoded flip rate over the raced contexts; None while it cannot be told."""
        self.num_screened = 0
        """Contexts that a forecast was asked for."""
        self._num_checked = 0

    @property
    def _probe(self) -> Probe | None:
        """The cheapest one that is able and was not put away."""
        return next((probe for probe in self._probes if probe.prompt_ids), None)

    @property
    def is_ready(self) -> bool:
        """Whether there is a probe that is able, and was not put away."""
        return self._probe is not None

    def num_candidates(self, num: int, screen: int) -> int:
        """Return how many contexts to screen if `num` are to race; `num` for a screen that is not ready or wanted."""
        return self._probe.num_candidates(num, screen) if self._probe and screen > 1 else num

    def lost_tokens(self, screen: int) -> float:
        """Return the tokens that screening loses for each context that races; 0 where nothing is generated for it."""
        return self._probe.lost_tokens if self._probe and screen > 1 else 0.0

    def learn(self, raced: Iterable[tuple[Context, Measurement]]) -> None:
        """Learn from contexts with their measurements on whole answers, and check the forecast against all so far."""
        for context, measurement in raced:
            labels = {flip.prompt_id: _changed(flip) for flip in measurement.flips if flip.prompt_id in self._kinds}
            self._decoded[context.context_id] = {id: label for id, label in labels.items() if label is not None}
            self._contexts[context.context_id] = context
        probe = self._probe
        if probe is None:
            return
        if probe.is_free:
            self._look(probe, list(self._contexts.values()))
        for kind in ("harmful", "benign"):
            self._fit(kind)
        self.correlation = self._check()
        if self.correlation is not None and self._most() < MIN_CORRELATION:
            self._put_away(probe)

    def forecast(self, contexts: Sequence[Context]) -> list[Forecast]:
        """Return a forecast for each context that could be looked at, in order; none for the others."""
        if self._probe:
            self._look(self._probe, contexts)
        seen = {context_id for context_id, _ in self._features}
        able = [context for context in contexts if context.context_id in seen]
        self.num_screened += len(able)
        return [
            Forecast(context, self._rate(context.context_id, "harmful"), self._rate(context.context_id, "benign"))
            for context in able
        ]

    def told(self, context: Context, decoded: Collection[str]) -> Told:
        """Return the forecast for a context over the prompts that are not among `decoded`, and what it is worth.

        On a prompt whose whole answer is known a look is no evidence of its own, though it may rank better.
        """
        harmful = [id for id, kind in self._kinds.items() if kind == "harmful" and id not in decoded]
        ids = [id for id in harmful if (context.context_id, id) in self._features]
        if not (ids and self._probe and self.correlation and self.correlation > 0):
            return Told(0.0, 0.0)
        return Told(self._rate(context.context_id, "harmful", ids), self.correlation**2 * len(ids))

    def _most(self) -> float:
        """The upper end of the correlation's 95 % interval (Fisher's z): contexts that are alike rank by chance."""
        z = math.atanh(min(max(self.correlation or 0.0, -CLIP), CLIP))
        return math.tanh(z + two_sided_z(0.95) / math.sqrt(max(1, self._num_checked - 3)))

    def notes(self) -> list[str]:
        """Return what the reader must know of how contexts came into the race."""
        probe = self._probe
        return [*self._checks, self._said(probe)] if probe and self.num_screened else self._checks

    def _said(self, probe: Probe) -> str:
        told = "could not be told" if self.correlation is None else f"is {self.correlation:.2f}"
        return (
            f"{self.num_screened} contexts were screened by {probe.what} on {len(probe.prompt_ids)} prompts, and "
            f"the best raced. Its rank correlation with decoded flip rates {told} ({self._num_checked} contexts)."
        )

    def _put_away(self, probe: Probe) -> None:
        self._checks.append(f"{self._said(probe)} That is too low: it was used no more.")
        self._probes.remove(probe)
        self._reset()

    def _look(self, probe: Probe, contexts: Sequence[Context]) -> None:
        self._bench.phase = "screen"
        known = {context_id for context_id, _ in self._features}
        self._features |= probe.features([context for context in contexts if context.context_id not in known])
        if not probe.prompt_ids:
            self._checks.append(f"Contexts cannot be screened by {probe.what}: they tell too little.")
            self._probes.remove(probe)
            self._reset()

    def _fit(self, kind: Kind) -> None:
        pairs = [
            (self._features[context_id, id], label)
            for context_id, labels in self._decoded.items()
            for id, label in labels.items()
            if self._kinds[id] == kind and (context_id, id) in self._features
        ]
        self._weights[kind] = fit_logistic([one for one, _ in pairs], [label for _, label in pairs], PRIOR)

    def _rate(self, context_id: str, kind: Kind, among: Iterable[str] | None = None) -> float:
        ids = self._kinds if among is None else among
        pairs = [(context_id, id) for id in ids if self._kinds[id] == kind]
        rows = [self._features[pair] for pair in pairs if pair in self._features]
        if not rows:
            return 0.0
        return round(float(predict_logistic(self._weights[kind], rows).mean()), 6)

    def _check(self) -> float | None:
        pairs = []
        for context_id, labels in self._decoded.items():
            seen = {id: label for id, label in labels.items() if (context_id, id) in self._features}
            told = {id: label for id, label in seen.items() if self._kinds[id] == "harmful"}
            if told:
                pairs.append((self._rate(context_id, "harmful", told), sum(told.values()) / len(told)))
        self._num_checked = len(pairs)
        if len(pairs) < MIN_CONTEXTS:
            return None
        forecast, decoded = zip(*pairs, strict=True)
        if len(set(forecast)) == 1 or len(set(decoded)) == 1:
            return None
        return float(spearmanr(forecast, decoded).statistic)


def _changed(flip: Flip) -> bool | None:
    """Whether the answer changed as the screen is to tell: flipped, or refused; None if it is unscored."""
    if flip.kind == "benign":
        return flip.refused_after
    return None if flip.after is Label.UNSCORED else flip.after is Label.SAFE
