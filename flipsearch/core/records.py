"""The records that flow through flipsearch, in the order in which they arise.

    Prompt --backend--> Rollout --judge--> Verdict --measurements.py--> Flip, Measurement

All are frozen. Ids are content hashes: the same content has the same id on every machine, so any stage can be
redone alone. This module knows nothing of models, files or statistics.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, get_args

from flipsearch.core.thoughts import SplitCompletion, split_answer

Kind = Literal["harmful", "benign"]
Split = Literal["search", "confirm", "training", "evaluation"]
Turn = tuple[str, str]
"""Role ("user" or "assistant") and content of a chat turn; hostile text."""
Scope = Split | Literal["all"]
"""What a measurement covers: one split, or every prompt."""
Placement = Literal["system", "before", "after", "around"]
PLACEMENTS: tuple[Placement, ...] = ("system", "before", "after", "around")
SPLITS: tuple[Split, ...] = ("search", "confirm", "training", "evaluation")

MARK_TOKENS = 32
"""Tokens at most of the marks around a thought, beside a thought's own budget."""
SHORT_THOUGHT = 64
"""Tokens of a thought that is a line or two."""
REMEMBERED = 2**17
"""Number of ids of prompts and contexts, and again of rollouts, that are cached: they are needed over and over."""


def content_id(*parts: object) -> str:
    """Return a 16-digit hexadecimal hash of JSON-able `parts`, stable across runs and machines."""
    blob = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(blob.encode("ascii")).hexdigest()[:16]


_text_id = lru_cache(maxsize=REMEMBERED)(content_id)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's request."""

    text: str
    """Hostile text: never rendered as a template."""
    kind: Kind
    """A good model declines harmful prompts and answers benign ones."""
    category: str = ""
    borderline: bool = False
    """A benign prompt that only looks harmful."""
    source: str = ""
    split: Split | None = None
    """Fixed by the prompt set; None lets the loader assign one."""
    group: str = ""
    """Prompts of one group are never in two splits; "" lets the loader find near-duplicates, which become a group."""
    turns: tuple[Turn, ...] = ()
    """Turns of the chat before this request, from the user's first to the assistant's last."""
    request: str = ""
    """The request that an attack made this prompt from: judges see it instead of the text; "" for any other prompt."""
    prefill: str = ""
    """What the completion is made to begin with."""
    is_raw: bool = False
    """The model reads the text as it is, without its chat template."""
    forms: "tuple[Prompt, ...]" = ()
    """Attacked prompts that are answered in its place, of which the worst counts; () for any other prompt."""

    @property
    def prompt_id(self) -> str:
        """Content hash of kind and text, and of the turns before it and of what an attack adds if there is any."""
        if self.forms:
            return _text_id("prompt", self.kind, self.text, tuple(form.prompt_id for form in self.forms))
        if self.request:
            return _text_id("prompt", self.kind, self.text, self.turns, self.request, self.prefill, self.is_raw)
        if self.turns:
            return _text_id("prompt", self.kind, self.text, self.turns)
        return _text_id("prompt", self.kind, self.text)

    @property
    def answered(self) -> "tuple[Prompt, ...]":
        """What the model answers: its forms, or itself without any."""
        return self.forms or (self,)

    @property
    def judged(self) -> "Prompt":
        """What judges see beside the answer: the request without what an attack made of it."""
        return Prompt(self.request, self.kind, self.category, self.borderline) if self.request else self


def num_answers(prompts: Iterable[Prompt]) -> int:
    """Return how many answers prompts take under one context, at one sample each."""
    return sum(len(prompt.answered) for prompt in prompts)


@dataclass(frozen=True, slots=True)
class Context:
    """A rendered privileged safety text under test, with its lineage."""

    text: str
    """The rendered text; "" is the empty context."""
    placement: Placement = "system"
    template: str = ""
    """Name of the template it was rendered from; "" for a text given by the user."""
    params: tuple[tuple[str, Any], ...] = ()
    axes: tuple[str, ...] = ()
    operator: str = ""
    """Operator that made it from its parents; "" for a rendered template."""
    parents: tuple[str, ...] = ()

    @property
    def context_id(self) -> str:
        """Content hash of text and placement: what the model sees, whatever the lineage."""
        return _text_id("context", self.text, self.placement)

    @property
    def origin(self) -> str:
        """Short label of where it comes from: its template, the operator that bred it, or "text"."""
        if self.operator and self.template:
            return f"{self.template} by {self.operator}"
        return self.template or self.operator or "text"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of completions."""

    max_tokens: int = 512
    """A longer completion is cut here and finishes with reason "length"."""
    temperature: float = 0.0
    top_p: float = 1.0
    """Nucleus mass in (0, 1]; used if temperature > 0."""
    top_k: int = 0
    seed: int = 0
    """A greedy completion does not depend on it."""
    think_tokens: int = 0
    """A thought is closed after this many tokens, and `max_tokens` then counts the answer alone; 0 closes none."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens that prompt or completion hold are divided by it, negative ones multiplied; 1: none."""

    def __post_init__(self) -> None:
        # 1 and 1.0 are equal, but JSON writes them differently, and ids hash the JSON text.
        object.__setattr__(self, "repetition_penalty", float(self.repetition_penalty))
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))

    @property
    def sampling_id(self) -> str:
        """Content hash of the parameters that can change a completion."""
        budget: tuple[object, ...] = ("think", self.think_tokens) if self.think_tokens else ()
        budget += ("repetition", self.repetition_penalty) if self.repetition_penalty != 1 else ()
        if self.temperature == 0:
            return content_id("greedy", self.max_tokens, *budget)
        return content_id("sampling", self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed, *budget)

    @property
    def longest(self) -> int:
        """Tokens of a completion at most: the answer's and, with a budget for it, the thought's and its marks'."""
        return self.max_tokens + (self.think_tokens + MARK_TOKENS if self.think_tokens else 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to be generated: a prompt, a context or none (the baseline), and a sample index."""

    prompt: Prompt
    context: Context | None = None
    sample_index: int = 0
    prefill: tuple[int, ...] = ()
    """Forced first tokens of the completion; the rest is generated."""
    skips_thought: bool = False
    """The prompt ends in a thought that is closed at once, as the chat template writes it: the answer comes first."""

    @property
    def context_id(self) -> str | None:
        """Id of the context; None for the baseline."""
        return self.context.context_id if self.context else None


FinishReason = Literal["stop", "length", "filtered", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "filtered", "error")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A model's completion of one request."""

    prompt_id: str
    context_id: str | None
    model_id: str
    """Identity of weights, tokenizer, chat template, precision and thinking switch."""
    sampling: Sampling
    sample_index: int
    completion: str
    """Decoded, without special tokens other than the marks of a thought."""
    completion_ids: tuple[int, ...]
    """Tokens with the end token; empty if the backend does not report them."""
    num_prompt_tokens: int
    finish_reason: FinishReason
    """"stop" ended by itself, "length" was cut at max_tokens, "filtered" was withheld by a filter or refused in a field
    of its own beside the model's text, and is never scored; "error" failed (see `error`)."""
    opens_thinking: bool = False
    """The chat template opened a think block, so the completion starts inside it."""
    error: str = ""
    prefill: tuple[int, ...] = ()
    skips_thought: bool = False
    num_thought_tokens: int = 0
    """Tokens up to the end of the mark that closed the thought; 0 without a closed thought, or without tokens."""
    forced_close: bool = False
    """The thought was closed by its budget and not by the model."""
    recites: bool = False
    """The answer is copied from the context or a harmful prompt for the most part, or only repeats what that says."""

    @property
    def rollout_id(self) -> str:
        """Content hash of the request, not of the completion."""
        request = (self.prompt_id, self.context_id, self.sampling, self.sample_index, self.prefill, self.skips_thought)
        return rollout_id(self.model_id, *request)

    @property
    def parts(self) -> SplitCompletion:
        """Thought and answer."""
        return split_answer(self.completion, self.opens_thinking)

    @property
    def num_lead_tokens(self) -> int:
        """Tokens of a long thought before the answer."""
        return lead_tokens(self.num_thought_tokens)

    @property
    def num_generated(self) -> int:
        """Completion tokens without the prefill."""
        return max(0, len(self.completion_ids) - len(self.prefill))


def lead_tokens(num_thought_tokens: int) -> int:
    """Return the tokens before those that show what an answer will be: all of a long thought, or none."""
    return num_thought_tokens if num_thought_tokens > SHORT_THOUGHT else 0


@lru_cache(maxsize=REMEMBERED)
def rollout_id(
    model_id: str,
    prompt_id: str,
    context_id: str | None,
    sampling: Sampling,
    sample_index: int,
    prefill: tuple[int, ...] = (),
    skips_thought: bool = False,
) -> str:
    """Return the id under which the ledger keeps the rollout of one request."""
    request = ("rollout", model_id, prompt_id, context_id, sampling.sampling_id, sample_index)
    return content_id(*request, *([prefill] if prefill else []), *(["no thought"] if skips_thought else []))


@dataclass(frozen=True, slots=True)
class PrefixScore:
    """Teacher-forced log-probabilities of a request's prefill: one forward pass, nothing is generated."""

    log_probs: tuple[float, ...]
    """Natural log-probability of each prefill token given those before it, at temperature 1."""
    num_agreed: int
    """Number of leading tokens that greedy decoding would have generated too."""


def prefix_score_id(model_id: str, request: Request) -> str:
    """Return the id under which the ledger keeps the score of one request's prefill."""
    score = ("prefix score", model_id, request.prompt.prompt_id, request.context_id, request.prefill)
    return content_id(*score, "no thought") if request.skips_thought else content_id(*score)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a judge sees: the prompt and the completion, never the context."""

    prompt: Prompt
    completion: str
    finish_reason: FinishReason = "stop"
    opens_thinking: bool = False

    @property
    def parts(self) -> SplitCompletion:
        """Thought and answer."""
        return split_answer(self.completion, self.opens_thinking)


class Label(StrEnum):
    """A judge's decision. UNSCORED is kept, shown and left out of every rate; it is never a score."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNSCORED = "unscored"


AnswerKind = Literal["refusal", "redirection", "help", "harm", "degenerate"]
"""What an answer is, beside its label: it refuses, points elsewhere, helps without harm, does harm, or is broken (a
loop, no words, another topic)."""
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
FLIP_KINDS: tuple[AnswerKind, ...] = ("refusal", "redirection", "help", "degenerate")
"""What an unsafe answer can turn into."""
COUNTED_KINDS: tuple[AnswerKind, ...] = ("refusal", "redirection", "help")
"""Those that count as a flip unless the user says otherwise: a broken answer shows no safety."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's decision on one exchange."""

    label: Label
    p_unsafe: float | None = None
    """Probability of UNSAFE in [0, 1]; None if unscored."""
    p_refusal: float | None = None
    """Probability that the answer refuses, in [0, 1]; None if the judge does not detect refusals."""
    reason: str = ""
    label_mass: float | None = None
    """Guard models: probability mass on the label tokens; None for other judges."""
    failed: bool = False
    """The judge, or a panel member that was needed, could not be called, e.g. its endpoint was down. The verdict is not
    saved, so that the next run calls the judge again."""
    kind: AnswerKind | None = None
    """What the answer is; None if nobody says, as for most answers that are UNSCORED."""
