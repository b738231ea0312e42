"""Cheap looks at what a context does, before any answer is decoded whole: the lower rungs of the fidelity ladder.

    reading   the model's own known answers, read under the context in one pass; nothing is generated
    glimpse   the first tokens of new answers, judged as they stand; whole answers go on from them later

Both give, for a pair of context and prompt, the two numbers that the screen learns from: how far the known answer
became less likely, and whether it is left. A probe says whether it is able at all; what it is worth is for the screen
to find out.

The screen: contexts judged by cheap looks at what they do (searching.probes), before they race.

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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flipsearch.core.progress import Phase
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, Flip, Kind, Label, Measurement, PrefixScore, Prompt, Request
from flipsearch.core.samples import JudgedRollout, Samples
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.statistics.intervals import two_sided_z
from flipsearch.statistics.regression import fit_logistic, predict_logistic

OPENING_TOKENS = 24
"""Teacher and student differ most in the first ten tokens and hardly past thirty (OPSA, Figure 2)."""
GLIMPSE_TOKENS = 16
"""Enough for a refusal to show: one that comes is mostly there within the first ten tokens."""
MOST_DROP, DROP_UNIT = 30.0, 10.0
"""A drop of log-probability counts at most this much, in units that are of size 1."""
MIN_READINGS = 64
"""Contexts that are read for a cohort, however small it is: reading costs little beside answers."""
GLIMPSED = 2
"""Contexts that are glimpsed for each one raced: a glimpse of an answer that nothing goes on from is lost."""
WORTH_CUTTING = 2.0
"""Whole answers must be so many times longer than a glimpse, or a glimpse saves nothing."""
TRIED = 3
"""Contexts on which a glimpse must show that it can be scored."""
MIN_SCORED = 0.5
"""Share of their glimpses that the judge must be able to score: a thought that goes on tells nothing."""

Pair = tuple[str, str]
"""Context id, prompt id."""
Features = tuple[float, float]
"""Drop of the known answer's log-probability, in DROP_UNITs; 1 where the known answer is left, 0 where it stays."""


class Probe(Protocol):
    """One way to look."""

    what: str
    """What was looked at, for the reader of a report."""
    is_free: bool
    """Whether looking generates nothing."""
    lost_tokens: float
    """Tokens that looking generates for each context that races, beyond what its answers go on from."""

    @property
    def prompt_ids(self) -> Collection[str]:
        """The prompts that are looked at under each context; none for a probe that is not able."""
        ...

    def num_candidates(self, num: int, screen: int) -> int:
        """Return how many contexts to look at if `num` are to race; the user wants `screen` for each of those."""
        ...

    def features(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        """Return what is seen of each context on each prompt; what cannot be told is left out."""
        ...


class PrefixScoreProbe:
    """Reads the openings of known answers: unsafe ones of harmful prompts, helpful ones of benign prompts."""

    what = "reading known answers"
    is_free = True
    lost_tokens = 0.0

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        requests = _prefills(runner, base, prompts) if isinstance(runner.backend, PrefixScorer) else {}
        own = runner.score_prefixes(list(requests.values()))
        self._own = {id: reading for id, reading in zip(requests, own, strict=True) if reading is not None}
        self._requests = {id: requests[id] for id in self._own}

    @property
    def prompt_ids(self) -> Collection[str]:
        """Those whose known answer the model could read without a context."""
        return self._own.keys()

    def num_candidates(self, num: int, screen: int) -> int:
        """As many as the user wants, and enough for a choice."""
        return max(num * screen, MIN_READINGS)

    def features(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        """Read every known answer under every context."""
        pairs = {
            (context.context_id, id): Request(request.prompt, context, prefill=request.prefill)
            for context in contexts
            for id, request in self._requests.items()
        }
        prefix_scores = zip(pairs, self._runner.score_prefixes(list(pairs.values())), strict=True)
        return {pair: _changes(self._own[pair[1]], reading) for pair, reading in prefix_scores if reading is not None}


class ShortDecodeProbe:
    """Decodes the first tokens of new answers, for a model that cannot be read, or whose readings did not tell."""

    what = f"the first {GLIMPSE_TOKENS} tokens of answers"
    is_free = False

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        known = {prompt: base.outcomes[prompt.prompt_id] for prompt in prompts}
        lengths = [draw.num_tokens for draws in known.values() for draw in draws.judged]
        saves = runner.can_continue and sum(lengths) >= WORTH_CUTTING * GLIMPSE_TOKENS * max(1, len(lengths))
        self._prompts = {p.prompt_id: p for p, draws in known.items() if saves and _known(p.kind, draws)}
        self.lost_tokens = float((GLIMPSED - 1) * len(self._prompts) * GLIMPSE_TOKENS)

    @property
    def prompt_ids(self) -> Collection[str]:
        """Those whose answer without a context is known to be unsafe, or to help."""
        return self._prompts.keys()

    def num_candidates(self, num: int, screen: int) -> int:
        """Few, as they are decoded."""
        return num * min(screen, GLIMPSED)

    def features(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        """Glimpse a few contexts before the others: if hardly any answer of theirs can be scored, this probe ends."""
        few, others = contexts[:TRIED], contexts[TRIED:]
        seen = self._short_decode(few)
        if len(seen) < MIN_SCORED * len(self._prompts) * len(few):
            self._prompts = {}
            return {}
        return seen | self._short_decode(others)

    def _short_decode(self, contexts: Sequence[Context]) -> dict[Pair, Features]:
        asked = [(context, prompt) for context in contexts for prompt in self._prompts.values()]
        judged = self._runner.short_decodes([self._runner.request(p, context) for context, p in asked], GLIMPSE_TOKENS)
        left = [_is_left(prompt.kind, one) for (_, prompt), one in zip(asked, judged, strict=True)]
        pairs = [(context.context_id, prompt.prompt_id) for context, prompt in asked]
        return {pair: (0.0, float(gone)) for pair, gone in zip(pairs, left, strict=True) if gone is not None}


def _prefills(runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> dict[str, Request]:
    """Return the requests to read without a context: unsafe answers, and benign ones that do not refuse."""
    known = {prompt: _known(prompt.kind, base.outcomes[prompt.prompt_id]) for prompt in prompts}
    rollouts = runner.ledger.rollouts(id for id in known.values() if id)
    found = {}
    for prompt, id in known.items():
        rollout = rollouts.get(id)
        if rollout is not None and rollout.completion_ids:
            found[prompt.prompt_id] = Request(prompt, prefill=rollout.completion_ids[:OPENING_TOKENS])
    return found


def _known(kind: Kind, draws: Samples) -> str:
    """The first draw that shows what the prompt counts as, by its rollout id; "" for a prompt that is not looked at."""
    if kind == "harmful":
        return draws.shown.rollout_id if draws.shown and draws.label is Label.UNSAFE else ""
    shown = [one for one in draws.judged if one.refused is False and draws.refused is False]
    return shown[0].rollout_id if shown else ""


def _changes(own: PrefixScore, under: PrefixScore) -> Features:
    """How much less likely the opening is under the context, and whether greedy decoding would leave it."""
    drop = sum(own.log_probs) - sum(under.log_probs)
    return min(max(drop, 0.0), MOST_DROP) / DROP_UNIT, float(under.num_agreed < len(under.log_probs))


def _is_left(kind: Kind, short_decode: JudgedRollout) -> bool | None:
    if kind == "benign":
        return short_decode.refused
    return None if short_decode.verdict.label is Label.UNSCORED else short_decode.verdict.label is Label.SAFE


CLIP = 0.999
"""Correlations are held off 1 by this before they are transformed."""
PRIOR = (-3.0, 1.0, 3.0)
"""Log-odds of a changed answer before anything is decoded: intercept, a unit of drop, a known answer that is left."""
MIN_CONTEXTS, MIN_CORRELATION = 6, 0.5
"""Checked on so many contexts, the forecast must rank them so well, as far as chance allows, to be used on."""


@dataclass(frozen=True, slots=True)
class ScreenPrediction:
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

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        self._kinds: dict[str, Kind] = {prompt.prompt_id: prompt.kind for prompt in prompts}
        self._probes: list[Probe] = [PrefixScoreProbe(runner, base, prompts), ShortDecodeProbe(runner, base, prompts)]
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

    def forecast(self, contexts: Sequence[Context]) -> list[ScreenPrediction]:
        """Return a forecast for each context that could be looked at, in order; none for the others."""
        if self._probe:
            self._look(self._probe, contexts)
        seen = {context_id for context_id, _ in self._features}
        able = [context for context in contexts if context.context_id in seen]
        self.num_screened += len(able)
        return [
            ScreenPrediction(
                context, self._rate(context.context_id, "harmful"), self._rate(context.context_id, "benign")
            )
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
        self._runner.enter(Phase.SCREEN)
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
