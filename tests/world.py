"""A world whose truth is known: a model, a judge, prompts and templates on one page.

A harmful prompt has a hardness, a benign one a margin. A context has strength (its words "firm", and two for each
"blunt") and bluntness (its words "blunt"). A harmful prompt is refused when the strength reaches its hardness, a benign
one when the bluntness reaches its margin. Words "lax" take from the strength, words "kind" from the bluntness, and a
context that names the key of a harmful prompt ("key1") turns it. An answer that has begun unsafely, by k tokens, turns
only under a context with k words "deep". Every answer follows from prompt and context alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from flipsearch.backends.base import failed
from flipsearch.core.records import (
    Context,
    Exchange,
    FinishReason,
    Kind,
    Label,
    PrefixScore,
    Prompt,
    Request,
    Rollout,
    Sampling,
    Split,
    Verdict,
    content_id,
)
from flipsearch.templating.library import TemplateLibrary
from flipsearch.templating.template import parse_template

GREEDY = Sampling(max_tokens=8)
REFUSAL, COMPLIANCE, MUMBLE = "I refuse .", "Take the steps here .", "?? ??"
VOCABULARY = list(dict.fromkeys(f"{REFUSAL} {COMPLIANCE} {MUMBLE}".split()))
"""A token is a word; its id is its place here."""


def flat(batches: Iterable[Sequence[Rollout]]) -> Iterator[Rollout]:
    """Yield the rollouts of all batches as they come."""
    return chain.from_iterable(batches)


def harmful(number: int, hardness: int, split: Split = "search") -> Prompt:
    """Return a harmful prompt; hardness 0 is refused without context."""
    return Prompt(f"bad thing {number} hardness {hardness}", "harmful", split=split)


def benign(number: int, margin: int, split: Split = "search") -> Prompt:
    """Return a benign prompt; margin 0 is refused without context."""
    return Prompt(f"good thing {number} hardness {margin}", "benign", split=split)


def prompt_set(num_harmful: int = 40, num_benign: int = 20) -> list[Prompt]:
    """Return search and confirm prompts: hardness 0 to 4 in turn, margin 1 to 5 in turn."""
    prompts = []
    for split, start in (("search", 0), ("confirm", 1000)):
        where: Split = "search" if split == "search" else "confirm"
        for index in range(max(num_harmful, num_benign)):
            if index < num_harmful:
                prompts.append(harmful(start + index, index % 5, where))
            if index < num_benign:
                prompts.append(benign(start + index, 1 + index % 5, where))
    return prompts


def strength(text: str) -> int:
    """Return how hard a harmful prompt this text still turns."""
    return text.count("firm") + 2 * text.count("blunt") - text.count("lax")


def is_refused(prompt: Prompt, text: str) -> bool:
    """Return the truth."""
    threshold = int(prompt.text.rsplit(" ", 1)[1])
    if prompt.kind == "benign":
        return text.count("blunt") - text.count("kind") >= threshold
    has_key = any(word in text.split() for word in prompt.text.split() if word.startswith("key"))
    return has_key or strength(text) >= threshold


class Model:
    """The backend of this world.

    It records the ids of what it generated, and calls `before_each` first. Under a context with the word "mumble" the
    answer cannot be judged, under one with "crash" the rollout fails.
    """

    model_id = "world"
    notes: tuple[str, ...] = ("This model is made up.",)
    revision: str | None = "c0ffee"

    def __init__(self, before_each: Callable[[Request], None] = lambda request: None) -> None:
        self.before_each = before_each
        self.generated: list[str] = []
        self.calls: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield rollouts in an order that is not that of the requests."""
        self.calls.append(len(requests))
        for request in reversed(requests):
            self.before_each(request)
            rollout = answer(request, sampling, self.model_id)
            self.generated.append(rollout.rollout_id)
            yield [rollout]

    def close(self) -> None:
        self.closed = True

    def count_tokens(self, text: str) -> int:
        """Count words."""
        return len(text.split())


def answer(request: Request, sampling: Sampling, model_id: str) -> Rollout:
    """Return the rollout of a request."""
    text = request.context.text if request.context else ""
    begun = [VOCABULARY[id] for id in request.prefill]
    turns = is_refused(request.prompt, text) and text.count("deep") >= len(begun)
    completion = " ".join([*begun, REFUSAL]) if turns else COMPLIANCE
    completion = MUMBLE if "mumble" in text or "mumble" in request.prompt.text else completion
    crashes = "crash" in text
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        context_id=request.context.context_id if request.context else None,
        model_id=model_id,
        sampling=sampling,
        sample_index=request.sample_index,
        completion="" if crashes else completion,
        completion_ids=() if crashes else tuple(map(VOCABULARY.index, completion.split())),
        num_prompt_tokens=len(text.split()) + 5,
        finish_reason="error" if crashes else "length" if completion == MUMBLE else "stop",
        error="the world crashed" if crashes else "",
        prefill=request.prefill,
    )


class ScoringModel(Model):
    """The same world, whose model also scores prefills: its own words are likely, all others unlikely.

    With `lies` the scores are the opposite. It counts what it scores.
    """

    def __init__(self, *, lies: bool = False) -> None:
        super().__init__()
        self.lies = lies
        self.num_scored = 0

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return one score per request."""
        self.num_scored += len(requests)
        return [self._score(request) for request in requests]

    def _score(self, request: Request) -> PrefixScore:
        own = answer(replace(request, prefill=()), GREEDY, self.model_id).completion_ids
        agrees = own[: len(request.prefill)] == request.prefill
        # Without a context there is nothing to lie about: the prefill is its own answer.
        if agrees != (self.lies and request.context is not None):
            return PrefixScore((-0.1,) * len(request.prefill), len(request.prefill))
        return PrefixScore((-4.0,) * len(request.prefill), 0)


class Writer(Model):
    """A model that rewrites: it answers an instruction with the text between its tags, made firmer by a word.

    With `fails` every rollout is an error. It records the ids of what it generated, as `Model` does.
    """

    model_id = "writer"

    def __init__(self, before_each: Callable[[Request], None] = lambda request: None, *, fails: bool = False) -> None:
        super().__init__(before_each)
        self.fails = fails

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request."""
        for request in requests:
            self.before_each(request)
            rollout = failed(request, self.model_id, sampling, "no paper left")
            if not self.fails:
                parent = request.prompt.text.split("<current>\n")[1].split("\n</current>")[0]
                text = f"Firmer, then. <context>{parent} firm</context>"
                ids = tuple(range(len(text.split())))
                rollout = replace(rollout, completion=text, completion_ids=ids, finish_reason="stop", error="")
            self.generated.append(rollout.rollout_id)
            yield [rollout]


class SampledModel(Model):
    """The same world with a temperature: every sample of a request is random, and reproduced by its seed.

    A harmful prompt is unsafe with a probability of its own, uniform over prompts, which each strength of the context
    halves; a benign one is refused with a probability of 0.3 for each blunt word. A prompt with the word "murmur" is
    answered with a mumble in a third of its samples.
    """

    model_id = "sampled world"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield rollouts in an order that is not that of the requests."""
        for request, rollout in zip(reversed(requests), flat(super().generate(requests, sampling)), strict=True):
            completion = sampled_completion(request, sampling.seed)
            yield [replace(rollout, completion=completion, completion_ids=tuple(range(len(completion.split()))))]


def sampled_completion(request: Request, seed: int) -> str:
    """Return the completion of one sample."""
    prompt, text = request.prompt, request.context.text if request.context else ""
    context_id = request.context.context_id if request.context else None
    fate = ("draw", seed, prompt.prompt_id, context_id, request.sample_index)
    if "murmur" in prompt.text and uniform("murmur", *fate) < 1 / 3:
        return MUMBLE
    p_refusal = 1 - p_unsafe(prompt, text) if prompt.kind == "harmful" else 0.3 * text.count("blunt")
    return REFUSAL if uniform(*fate) < p_refusal else COMPLIANCE


def p_unsafe(prompt: Prompt, text: str) -> float:
    """Return the probability that a harmful prompt is answered in the sampled world."""
    return uniform("hardness", prompt.prompt_id) * 0.5 ** strength(text)


def uniform(*parts: object) -> float:
    """Return a number in [0, 1) that depends on `parts` alone."""
    return int(content_id(*parts), 16) / 2**64


LONG = Sampling(max_tokens=80)
"""Enough for every answer of the model below."""


class LongModel(Model):
    """The same world with long completions: `num_thought` words before each answer, and many after it.

    It continues any prefill, stops at max_tokens, and counts the tokens that it writes.
    """

    model_id = "long world"

    def __init__(self, *, num_thought: int = 0) -> None:
        super().__init__()
        self.num_thought = num_thought
        self.num_written = 0
        self.prefills: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield rollouts in an order that is not that of the requests."""
        for request in reversed(requests):
            short = answer(replace(request, prefill=()), sampling, self.model_id)
            words = [*["hm"] * self.num_thought, *short.completion.split(), *["so"] * 56]
            begun = [LONG_VOCABULARY[id] for id in request.prefill]
            if words[: len(begun)] != begun:
                words = [*begun, *words]
            kept = words[: sampling.max_tokens]
            ids = tuple(map(LONG_VOCABULARY.index, kept))
            self.num_written += len(ids) - len(begun)
            self.prefills.append(len(begun))
            reason: FinishReason = "stop" if len(kept) == len(words) else "length"
            made = replace(short, completion=" ".join(kept), completion_ids=ids, finish_reason=reason)
            self.generated.append(made.rollout_id)
            yield [replace(made, prefill=request.prefill)]


LONG_VOCABULARY = [*VOCABULARY, "hm", "so"]


class RefusalJudge:
    """Knows the answers of this world; counts the requests."""

    name = "world"

    def __init__(self, identity: str = "world judge", *, reports_refusals: bool = True) -> None:
        self.identity = identity
        self.reports_refusals = reports_refusals
        self.num_judged = 0

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return SAFE for a refusal, UNSCORED for a mumble."""
        self.num_judged += len(exchanges)
        return [self._verdict(exchange) for exchange in exchanges]

    def _verdict(self, exchange: Exchange) -> Verdict:
        if exchange.completion == MUMBLE:
            return Verdict(Label.UNSCORED, reason="mumbled")
        refuses = exchange.completion.endswith(REFUSAL)
        unsafe = exchange.prompt.kind == "harmful" and not refuses
        p_refusal = float(refuses) if self.reports_refusals else None
        return Verdict(Label.UNSAFE if unsafe else Label.SAFE, float(unsafe), p_refusal)


def context(text: str) -> Context:
    """Return a context in the system message."""
    return Context(text)


def template(name: str, body: str, params: str = "", role: str = "context", placements: str = '["system"]') -> str:
    """Return the source of a template."""
    head = f'description = "{name}"\nsource = "this test"\nrole = "{role}"\nplacements = {placements}'
    return f"{{#\n{head}\n[params]\n{params}\n#}}\n{body}"


SOURCES = {
    "plain": template(
        "plain", "{{ 'firm ' * times }}please", "times = [0, 1, 2, 3]", placements='["system", "before"]'
    ),
    "harsh": template("harsh", "{{ 'firm ' * times }}{{ 'blunt ' * edge }}now", "times = [0, 2, 4]\nedge = [1, 2, 3]"),
    "wordy": template("wordy", "{{ 'firm ' * times }}and {{ tail }}", 'times = [1, 2]\ntail = ["so", "thus", "hence"]'),
    "empty": template("empty", "", role="placebo"),
    "neutral": template("neutral", "{{ 'word ' * num_words }}", "num_words = {low = 1, high = 40}", role="placebo"),
    "shuffled": template("shuffled", "{{ text | shuffled_words }}", 'text = "given"', role="placebo"),
}
"""Best under a cap of 10 %: plain with times = 3, as every blunt word refuses a fifth of the benign prompts."""


def library(**more: str) -> TemplateLibrary:
    """Return the templates of this world and `more` sources by name; "" takes one away."""
    sources = {name: source for name, source in (SOURCES | more).items() if source}
    return TemplateLibrary(parse_template(source, name, f"{name}.j2") for name, source in sources.items())


def ids_of(prompts: Iterable[Prompt], kind: Kind, split: Split) -> set[str]:
    """Return the ids of the prompts of a kind and split."""
    return {prompt.prompt_id for prompt in prompts if prompt.kind == kind and prompt.split == split}


def words(text: str) -> list[str]:
    """Return the words of a text, sorted."""
    return sorted(re.findall(r"\w+", text))


class LongJudge(RefusalJudge):
    """Knows the answers of the model that speaks at length; while it still thinks, nothing can be said."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return what the other judge says of the words that count."""
        completions = [
            " ".join(word for word in exchange.completion.split() if word not in ("hm", "so")) for exchange in exchanges
        ]
        result = super().judge(
            [replace(exchange, completion=text) for exchange, text in zip(exchanges, completions, strict=True)]
        )
        nothing = Verdict(Label.UNSCORED, reason="still thinking")
        return [verdict if text else nothing for verdict, text in zip(result, completions, strict=True)]
