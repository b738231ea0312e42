"""The records that flow through flipsearch, in the order in which they arise.

    Prompt --backend--> Rollout --judge--> Verdict --flips--> Flip --measure--> Measurement --search--> Trial --> Study

All are frozen. Ids are content hashes: the same content has the same id on every machine, so any stage can be
redone alone. This module knows nothing of models, files or statistics.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["harmful", "benign"]
Split = Literal["search", "confirm", "training", "evaluation"]
Scope = Split | Literal["all"]
"""What a measurement covers: one split, or every prompt."""
Placement = Literal["system", "before", "after", "around"]
PLACEMENTS: tuple[Placement, ...] = ("system", "before", "after", "around")
SPLITS: tuple[Split, ...] = ("search", "confirm", "training", "evaluation")

REMEMBERED = 2**14
"""Ids of prompts and contexts, and as many of rollouts, that are kept in memory: they are asked for over and over."""


def content_id(*parts: object) -> str:
    """Return a 16-digit hexadecimal hash of JSON-able `parts`, stable across runs and machines."""
    blob = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(blob.encode("ascii")).hexdigest()[:16]


@lru_cache(maxsize=REMEMBERED)
def _text_id(*parts: str) -> str:
    return content_id(*parts)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The user's request."""

    text: str
    """The request as the user wrote it. Hostile text: never rendered as a template."""
    kind: Kind
    """What a good model does with it: harmful is to be declined, benign to be answered."""
    category: str = ""
    """Free label for grouping, e.g. "theft"."""
    borderline: bool = False
    """A benign prompt that only looks harmful."""
    source: str = ""
    """The set or file it came from."""
    split: Split | None = None
    """A split fixed by the set itself; None lets the loader assign one."""
    group: str = ""
    """Prompts of one group never stand in two splits; "" lets the loader find near-duplicates."""

    @property
    def prompt_id(self) -> str:
        """Content hash of kind and text."""
        return _text_id("prompt", self.kind, self.text)


@dataclass(frozen=True, slots=True)
class Context:
    """A rendered privileged safety text under test, with its lineage."""

    text: str
    """The rendered text; "" is the empty context."""
    placement: Placement = "system"
    """Where it goes: system message, before, after or around the prompt."""
    template: str = ""
    """Name of the template it was rendered from; "" for a text given by the user."""
    params: tuple[tuple[str, Any], ...] = ()
    """The template parameters it was rendered with, sorted by name."""
    axes: tuple[str, ...] = ()
    """The design axes that its template works on."""
    operator: str = ""
    """The operator that made it out of its parents; "" for a rendered template."""
    parents: tuple[str, ...] = ()
    """The context ids of its parents."""

    @property
    def context_id(self) -> str:
        """Content hash of text and placement: what the model sees, whatever the lineage."""
        return _text_id("context", self.text, self.placement)

    @property
    def origin(self) -> str:
        """Where it comes from, in a word or two: its template, the operator that bred it, or "text"."""
        if self.operator and self.template:
            return f"{self.template} by {self.operator}"
        return self.template or self.operator or "text"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    max_tokens: int = 512
    """Most completion tokens; a longer completion finishes with reason "length"."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]; used when temperature > 0."""
    top_k: int = 0
    """Number of most likely tokens kept; 0 keeps all."""
    seed: int = 0
    """Seed of the draws; a greedy completion does not depend on it."""

    def __post_init__(self) -> None:
        # 1 and 1.0 are equal, but are written differently, and ids hash what is written.
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))

    @property
    def sampling_id(self) -> str:
        """Content hash of what can change a completion."""
        if self.temperature == 0:
            return content_id("greedy", self.max_tokens)
        return content_id("sampling", self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed)


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to be generated: a prompt, a context or none, and which repeat it is."""

    prompt: Prompt
    """The user's request."""
    context: Context | None = None
    """The privileged context; None is the baseline."""
    sample_index: int = 0
    """0 for the first draw; with sampling, repeats count up."""
    opening: tuple[int, ...] = ()
    """Tokens that the completion begins with, whatever the model would write; what follows is generated."""


FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the model wrote for one request."""

    prompt_id: str
    """Of the prompt."""
    context_id: str | None
    """Of the context; None is the baseline."""
    model_id: str
    """Identity of weights, tokenizer, chat template, precision and thinking switch."""
    sampling: Sampling
    """How it was drawn."""
    sample_index: int
    """Which repeat it is."""
    completion: str
    """The decoded completion, special tokens removed."""
    completion_ids: tuple[int, ...]
    """Its tokens, the end token included; empty where the backend does not tell."""
    num_prompt_tokens: int
    """Length of the prompt after the chat template, in tokens."""
    finish_reason: FinishReason
    """"stop" ended by itself, "length" was cut, "error" failed (see `error`)."""
    opens_thinking: bool = False
    """The chat template had already opened a think block, so the completion starts inside it."""
    error: str = ""
    """Why it failed."""
    opening: tuple[int, ...] = ()
    """The tokens that it was made to begin with; `completion_ids` holds them too."""

    @property
    def rollout_id(self) -> str:
        """Content hash of what was asked for, not of what came back."""
        return rollout_id(
            self.model_id, self.prompt_id, self.context_id, self.sampling, self.sample_index, self.opening
        )

    @property
    def num_generated(self) -> int:
        """Tokens that the model wrote: the completion's without the opening's."""
        return max(0, len(self.completion_ids) - len(self.opening))


@lru_cache(maxsize=REMEMBERED)
def rollout_id(
    model_id: str,
    prompt_id: str,
    context_id: str | None,
    sampling: Sampling,
    sample_index: int,
    opening: tuple[int, ...] = (),
) -> str:
    """Return the id under which the ledger keeps the rollout of one request."""
    asked = ("rollout", model_id, prompt_id, context_id, sampling.sampling_id, sample_index)
    return content_id(*asked, opening) if opening else content_id(*asked)


@dataclass(frozen=True, slots=True)
class Reading:
    """How likely a model finds the opening of a request: read in one pass, nothing is generated."""

    log_probs: tuple[float, ...]
    """Natural logarithm of the probability of each token of the opening after those before it, at temperature 1."""
    num_agreed: int
    """Leading tokens that greedy decoding would have written itself."""


def reading_id(model_id: str, prompt_id: str, context_id: str | None, opening: tuple[int, ...]) -> str:
    """Return the id under which the ledger keeps the reading of one request."""
    return content_id("reading", model_id, prompt_id, context_id, opening)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a judge sees: the prompt and the completion, never the context."""

    prompt: Prompt
    """The user's request."""
    completion: str
    """What the model wrote."""
    finish_reason: FinishReason = "stop"
    """How the completion ended."""
    opens_thinking: bool = False
    """The completion starts inside a think block."""


class Label(StrEnum):
    """A judge's decision. UNSCORED is kept, shown and left out of every rate; it is never a score."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNSCORED = "unscored"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's word on one exchange."""

    label: Label
    """SAFE, UNSAFE or UNSCORED."""
    p_unsafe: float | None = None
    """Probability of UNSAFE in [0, 1]; None when unscored."""
    p_refusal: float | None = None
    """Probability that the answer refuses, in [0, 1]; None if this judge cannot tell."""
    reason: str = ""
    """Why, in a few words; for UNSCORED what went wrong."""
    label_mass: float | None = None
    """Guard models: probability mass on the label tokens; None for other judges."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One prompt before and after a context, by all of its draws. UNSCORED on either side makes the pair unscored."""

    prompt_id: str
    """Of the prompt."""
    kind: Kind
    """Of the prompt."""
    before: Label
    """The baseline's label."""
    after: Label
    """The label under the context."""
    refused_before: bool | None = None
    """Whether the baseline refuses; None if unscored."""
    refused_after: bool | None = None
    """Whether the answer under the context refuses; None if unscored."""
    rollout_ids: tuple[str, ...] = ()
    """The rollouts under the context, one a draw."""
    unsafe_share_before: float | None = None
    """Unsafe / scored draws of the baseline; None if there is one draw alone, or none is scored."""
    unsafe_share_after: float | None = None
    """The same under the context."""

    @property
    def flipped(self) -> bool:
        """Unsafe without the context, safe with it."""
        return self.before is Label.UNSAFE and self.after is Label.SAFE

    @property
    def regressed(self) -> bool:
        """Safe without the context, unsafe with it."""
        return self.before is Label.SAFE and self.after is Label.UNSAFE


@dataclass(frozen=True, slots=True)
class Rate:
    """A fraction with its 95 % interval."""

    count: int
    """Numerator."""
    n: int
    """Denominator; 0 means that nothing was measured."""
    low: float
    """Lower end of the interval, in [0, 1]."""
    high: float
    """Upper end of the interval, in [0, 1]."""

    @property
    def value(self) -> float | None:
        """Count / n, or None when nothing was measured."""
        return self.count / self.n if self.n else None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return value, count, n, low and high for JSON."""
        return {"value": self.value, "count": self.count, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fraction, a mean or a difference with its 95 % interval."""

    value: float | None
    """Fractions in [0, 1], differences in [-1, 1]; None when nothing was measured."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Prompts or problems that it rests on; pairs for a difference."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two fractions with its 95 % interval."""

    value: float
    """First minus second, in [-1, 1]."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of pairs."""
    p_value: float
    """Exact McNemar test on the discordant pairs (mid-p)."""

    def as_dict(self) -> dict[str, float | int]:
        """Return all fields for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "p_value": self.p_value}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One context on one split: the pairs and the rates computed from them."""

    split: Scope
    """Which prompts."""
    flips: tuple[Flip, ...]
    """One pair a prompt, in the order of the split."""
    flip_rate: Rate
    """Flips / scored prompts that are unsafe without context."""
    flip_rate_bounds: tuple[float, float]
    """The flip rate if every unscored pair had failed, and if every one had flipped."""
    tfr: Rate | None
    """Flips / all scored harmful prompts (OPSA Eq. 4); None if only base-unsafe prompts were regenerated."""
    over_refusal_rate: Rate
    """Refused / scored benign prompts."""
    transitions: Mapping[str, int]
    """Harmful prompts by "before->after", e.g. "unsafe->safe"; unscored ones included."""
    coverage: Rate
    """Scored / all pairs."""
    unsafe_share: "UnsafeShare | None" = None
    """With several draws a prompt: how many of them are unsafe; None with one, or without prompts to tell it of."""


@dataclass(frozen=True, slots=True)
class UnsafeShare:
    """Mean share of unsafe draws over the prompts that are unsafe without context, each prompt counting once.

    The prompts were picked by the draws of `before`, which reads too high for it: drawn again without a context they
    would give less. What to hold `after` against is that of the empty placebo.
    """

    before: Estimate
    """Without context; n counts prompts."""
    after: Estimate
    """Under the context, over the same prompts."""

    def as_dict(self) -> dict[str, Any]:
        """Return both for JSON."""
        return {"before": asdict(self.before), "after": asdict(self.after)}


@dataclass(frozen=True, slots=True)
class Parent:
    """A context that operators make children of, with what is known of it."""

    context: Context
    """What it says, and where."""
    flip_rate: Rate
    """On the prompts that it has seen."""
    unflipped: tuple[str, ...] = ()
    """Texts of harmful prompts that stay unsafe under it. Hostile text; only `rewrite` reads it."""
    over_refused: tuple[str, ...] = ()
    """Texts of benign prompts that are refused under it. Hostile text; only `rewrite` reads it."""


@dataclass(frozen=True, slots=True)
class OperatorCredit:
    """What one operator has brought to a search."""

    operator: str
    """Its name."""
    num_children: int
    """Children that it made and that were fit to be measured."""
    num_barred: int
    """Children that the hygiene gates kept out."""
    num_raced: int
    """Children whose gain is known."""
    num_better: int
    """Those of them that flip more than their parent and are within the over-refusal cap."""
    mean_gain: float | None
    """Flip rate of child minus parent on the prompts that both have seen, mean over the raced; None without any."""
    low: float
    """Lower end of its 95 % interval, in [-1, 1]."""
    high: float
    """Upper end of the interval."""


TIE_LEVEL = 0.05
"""Two finalists are told apart if the adjusted p-value of their paired difference lies below."""
TrialState = Literal["complete", "held", "cut", "failed"]
TrialRole = Literal["arm", "placebo", "benign"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One context evaluated in a study."""

    number: int
    """Order of proposal, from 0; placebos count too."""
    context: Context
    """What was evaluated."""
    role: TrialRole
    """An arm can win; a placebo shows what no safety content does; a benign one is meant for benign prompts."""
    state: TrialState
    """"complete" saw all search prompts; "held" was held back after `rung`, for others promise more or as much; "cut"
    was stopped there by evidence; "failed" had too many unscored."""
    rung: int
    """Last rung it finished, from 0."""
    search: Measurement
    """On the search split; in a score, on what was scored."""
    confirm: Measurement | None = None
    """On the sealed confirm split; finalists and placebos only."""
    net: Difference | None = None
    """Flip rate minus the strongest placebo's, paired: on the confirm split, or on what was scored."""
    num_context_tokens: int | None = None
    """Length of the context's text in the model's own tokens."""
    behind: Difference | None = None
    """The winner's confirm flip rate minus this one's, paired, its p-value adjusted over the finalists (Holm)."""
    depth: tuple[tuple[int, Rate], ...] = ()
    """(k, confirm flip rate after the first k tokens of the unsafe answer without context), k from 0; finalists only.
    Of the answers that are longer than k; n = 0 means that there was none."""

    @property
    def optimism(self) -> float | None:
        """Search minus confirm flip rate: by how much the search, which chose by its own number, reads too high."""
        if self.confirm is None or self.search.flip_rate.value is None or self.confirm.flip_rate.value is None:
            return None
        return self.search.flip_rate.value - self.confirm.flip_rate.value

    @property
    def ties_winner(self) -> bool | None:
        """Whether the confirm split does not tell this finalist from the winner; None if they were not compared."""
        return None if self.behind is None else self.behind.p_value >= TIE_LEVEL

    def with_net(self, net: Difference | None) -> "Trial":
        """Return a copy that carries the net flip rate."""
        return replace(self, net=net)

    def with_confirm(self, confirm: Measurement, net: Difference | None) -> "Trial":
        """Return a copy that carries the confirm measurement."""
        return replace(self, confirm=confirm, net=net)


@dataclass(frozen=True, slots=True)
class Portfolio:
    """Few finalists that together flip what all of them flip.

    A prompt counts as flipped if any of them flips it: an oracle's number, for nothing says beforehand which one will.
    """

    context_ids: tuple[str, ...]
    """In the order in which a training asks them: each flips most of what those before it leave."""
    search: Rate
    """Prompts that any of them flips / prompts that are unsafe without context, on the search split that chose them."""
    confirm: Rate
    """The same on the sealed split."""
    winner: Rate
    """The winner alone on the sealed split, over the prompts that both could be scored on."""
    gain: Difference | None
    """All of them minus the winner alone on the sealed split, paired; None without a pair."""


@dataclass(frozen=True, slots=True)
class BenignContext:
    """Which context the teacher reads benign prompts under in training, and what it does to either kind of prompt."""

    context: Context | None
    """The chosen one; None if no context is best."""
    reason: str
    """Why it is this one, or none."""
    candidates: tuple[Trial, ...]
    """What was tried, measured on the benign prompts and on the harmful ones that are safe without context."""
    over_refusal_rate: Rate
    """Refused / benign confirm prompts under it (or under none)."""
    regression_rate: Rate
    """Unsafe under it / harmful confirm prompts that are safe without it: the new unsafe answers."""
    misrouted_harmful_rate: Rate
    """Unsafe / harmful confirm prompts, were they read under it."""
    misrouted_benign_rate: Rate
    """Refused / benign confirm prompts, were they read under the winner."""


@dataclass(frozen=True, slots=True)
class Study:
    """The whole search, as the report reads it."""

    name: str
    """Name of its folder."""
    settings: Mapping[str, Any]
    """The resolved configuration."""
    model_id: str
    """Identity of the model."""
    revision: str | None
    """Commit of a model from the hub; None for any other."""
    judge_id: str
    """Identity of the judge."""
    trials: tuple[Trial, ...]
    """Best first; placebos last."""
    base_unsafe: Mapping[str, Rate]
    """Split -> fraction of harmful prompts that are unsafe without context."""
    base_over_refusal: Mapping[str, Rate]
    """Split -> fraction of benign prompts refused without context."""
    num_rollouts: int
    """Rollouts that the study rests on."""
    num_tokens: int
    """Completion tokens in them."""
    notes: tuple[str, ...] = ()
    """What the reader must know, e.g. a chat template without a system role."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    winner: Trial | None = None
    """The best confirmed arm under the over-refusal cap; None if no arm is admissible."""
    operators: tuple[OperatorCredit, ...] = ()
    """What each operator's children gained on their parents, the most gainful first; () where none was used."""
    portfolio: Portfolio | None = None
    """The finalists that together flip most; None without a winner."""
    benign: BenignContext | None = None
    """The context for benign prompts; None if it was not asked for, or without a winner."""

    def trials_of(self, portfolio: Portfolio) -> list[Trial]:
        """Return the trials of a portfolio's contexts, in its order."""
        by_id = {trial.context.context_id: trial for trial in self.trials if trial.role == "arm"}
        return [by_id[id] for id in portfolio.context_ids]

    def is_over_cap(self, trial: Trial) -> bool:
        """Return whether a trial refuses more benign prompts than the study's cap allows, on any split."""
        cap = self.settings.get("max_over_refusal")
        rates = [m.over_refusal_rate.value or 0.0 for m in (trial.search, trial.confirm) if m]
        return cap is not None and max(rates) > cap
