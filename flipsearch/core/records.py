"""The records that flow through flipsearch, in the order in which they arise.

    Prompt --backend--> Rollout --judge--> Verdict --flips--> Flip --measure--> Measurement

All are frozen. Ids are content hashes: the same content has the same id on every machine, so any stage can be
redone alone. This module knows nothing of models, files or statistics.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    prefill: tuple[int, ...] = ()
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
    prefill: tuple[int, ...] = ()
    """The tokens that it was made to begin with; `completion_ids` holds them too."""

    @property
    def rollout_id(self) -> str:
        """Content hash of what was asked for, not of what came back."""
        return rollout_id(
            self.model_id, self.prompt_id, self.context_id, self.sampling, self.sample_index, self.prefill
        )

    @property
    def num_generated(self) -> int:
        """Tokens that the model wrote: the completion's without the opening's."""
        return max(0, len(self.completion_ids) - len(self.prefill))


@lru_cache(maxsize=REMEMBERED)
def rollout_id(
    model_id: str,
    prompt_id: str,
    context_id: str | None,
    sampling: Sampling,
    sample_index: int,
    prefill: tuple[int, ...] = (),
) -> str:
    """Return the id under which the ledger keeps the rollout of one request."""
    asked = ("rollout", model_id, prompt_id, context_id, sampling.sampling_id, sample_index)
    return content_id(*asked, prefill) if prefill else content_id(*asked)


@dataclass(frozen=True, slots=True)
class PrefixScore:
    """How likely a model finds the opening of a request: read in one pass, nothing is generated."""

    log_probs: tuple[float, ...]
    """Natural logarithm of the probability of each token of the opening after those before it, at temperature 1."""
    num_agreed: int
    """Leading tokens that greedy decoding would have written itself."""


def prefix_score_id(model_id: str, prompt_id: str, context_id: str | None, prefill: tuple[int, ...]) -> str:
    """Return the id under which the ledger keeps the reading of one request."""
    return content_id("reading", model_id, prompt_id, context_id, prefill)


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
    failed: bool = False
    """The judge, or a member of a panel that decides without it, could not be asked, e.g. its endpoint was down: not
    kept, so that the next run asks again."""


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
