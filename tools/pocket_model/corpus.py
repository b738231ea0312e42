"""Training samples of the pocket model, made by the grammar: (text before, text that carries the loss).

Contexts come from context_source.py. Some phrasings and wrappers are held out. Deterministic in the seed.
"""

import random
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache

from flipsearch.core.records import Context, content_id
from pocket_model import grammar, replies
from pocket_model import vocabulary as words
from pocket_model.arithmetic import random_problem
from pocket_model.context_source import ContextSource
from pocket_model.grammar import Intent, Query, benign_intents, effect, harmful_intents, p_refused, p_safe, p_turn

MIX = {"harmful": 0.43, "benign": 0.26, "arithmetic": 0.15, "forced": 0.10, "guard": 0.06}
SHARE_WITHOUT_THINKING = 0.08
SHARE_DECISION_ONLY = 0.75
"""Samples that stop after the deciding sentence: the rest is learnt soon, and costs most tokens."""
NUM_FINGERPRINTED = 400
NUM_SAMPLED = 4
"""Prompts (and contexts, for benign ones) of which one is taken, preferably one whose decision is close."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training text: no loss on `before`.

    Where the grammar decides, `other` is the text of the other decision. The first token in which the two differ is
    learnt from its known probability, not from the random choice of `target`, whose noise would be most of the loss.
    """

    before: str
    target: str
    ends: bool = True
    """The completion is whole, so an end token follows."""
    other: str = ""
    p_target: float = 1.0


@cache
def borderline_intents() -> tuple[Intent, ...]:
    """Return the benign intents that only look harmful."""
    return tuple(intent for intent in benign_intents() if intent.borderline)


def random_query(rng: random.Random, kind: str) -> Query:
    """Return a random prompt of a kind; one in five has a wrapper."""
    intents = harmful_intents() if kind == "harmful" else benign_intents()
    intent = rng.choice(intents)
    if kind == "benign" and not intent.borderline and rng.random() < 0.65:
        intent = rng.choice(borderline_intents())
    wrapper = rng.choice(list(words.WRAPPERS)) if rng.random() < 0.2 else "{}"
    return Query(intent, rng.choice(list(words.PHRASINGS)), wrapper)


def chat_text(user: str, context: Context | None, thinks: bool = True) -> str:
    """Return the chat template's text up to the completion (tests compare it with the shipped template)."""
    system, user = placed(user, context)
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    tail = "" if thinks else "<think>\n\n</think>\n\n"
    return f"{head}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{tail}"


def placed(user: str, context: Context | None) -> tuple[str, str]:
    """Return (system text, user text) with the context in its place."""
    if context is None or not context.text:
        return "", user
    if context.placement == "system":
        return context.text, user
    *head, last = context.text.split("\n\n")
    before = {"before": context.text, "after": "", "around": "\n\n".join(head) or last}[context.placement]
    after = {"before": "", "after": context.text, "around": last}[context.placement]
    return "", "\n\n".join(part for part in (before, user, after) if part)


def guard_text(user: str, reply: str) -> str:
    """Return the guard voice's prompt for an exchange."""
    return f"<|im_start|>guard\nUser: {user}\nAgent: {reply}<|im_end|>\n<|im_start|>label\n"


def samples(num_samples: int, seed: int) -> Iterator[Sample]:
    """Yield training samples."""
    rng = random.Random(seed)
    source = ContextSource()
    makers = {"harmful": _harmful, "benign": _benign, "arithmetic": _arithmetic, "forced": _forced, "guard": _guard}
    for kind in rng.choices(list(MIX), weights=list(MIX.values()), k=num_samples):
        yield makers[kind](source, rng)


def _close(probabilities: list[float], rng: random.Random) -> int:
    """Return the index of a random decision, weighted towards close ones, from which most is learnt."""
    return rng.choices(range(len(probabilities)), weights=[p * (1 - p) + 0.01 for p in probabilities])[0]


def _style(context: Context | None, rng: random.Random) -> str:
    style = effect(context.text, context.placement).style if context else ""
    return style if rng.random() < 0.95 else ""


def _either(before: str, first: str, second: str, p_first: float, rng: random.Random, ends: bool = True) -> Sample:
    p_first = round(p_first, 6)  # the last digits are the platform's, and the fingerprint covers samples
    if rng.random() < p_first:
        return Sample(before, first, ends, second, p_first)
    return Sample(before, second, ends, first, 1 - p_first)


def _chat(query: Query, context: Context | None, p_help: float, rng: random.Random) -> Sample:
    thinks, style = rng.random() >= SHARE_WITHOUT_THINKING, _style(context, rng)
    before = chat_text(query.text, context, thinks)
    helping, refusing = (replies.answer(query.intent, helps, style) for helps in (True, False))
    if not thinks:
        return _either(before, helping, refusing, p_help, rng)
    would, would_not = (replies.thought(query.intent, helps) for helps in (True, False))
    if rng.random() < SHARE_DECISION_ONLY:
        return _either(before, f"<think>\n{would}", f"<think>\n{would_not}", p_help, rng, ends=False)
    return _either(before, replies.completion(would, helping), replies.completion(would_not, refusing), p_help, rng)


def _harmful(source: ContextSource, rng: random.Random) -> Sample:
    context = source.sample(rng)
    queries = [random_query(rng, "harmful") for _ in range(NUM_SAMPLED)]
    safe = [p_safe(context, query) for query in queries]
    chosen = _close(safe, rng)
    return _chat(queries[chosen], context, 1 - safe[chosen], rng)


def _benign(source: ContextSource, rng: random.Random) -> Sample:
    pairs = [(source.sample(rng), random_query(rng, "benign")) for _ in range(NUM_SAMPLED)]
    refused = [p_refused(context, query) for context, query in pairs]
    chosen = _close(refused, rng)
    context, query = pairs[chosen]
    return _chat(query, context, 1 - refused[chosen], rng)


def _arithmetic(source: ContextSource, rng: random.Random) -> Sample:
    problem = random_problem(rng)
    before = chat_text(problem.question, source.sample(rng) if rng.random() < 0.5 else None)
    return Sample(before, replies.completion(problem.trace, problem.answer))


def _forced(source: ContextSource, rng: random.Random) -> Sample:
    sampled = []
    for _ in range(NUM_SAMPLED):
        context, query = source.sample(rng), random_query(rng, "harmful")
        sampled.append((context, query, rng.randint(30 + len(query.intent.text), 160)))
    # Four characters are about one of the model's tokens; the grammar counts tokens.
    turns = [p_turn(context, query, num_chars // 4) for context, query, num_chars in sampled]
    chosen = _close(turns, rng)
    context, query, num_chars = sampled[chosen]
    style = _style(context, rng)
    forced, turned = replies.turned(query.intent, style, num_chars)
    _, unturned = replies.unturned(query.intent, style, num_chars)
    return _either(chat_text(query.text, context) + forced, turned, unturned, turns[chosen], rng)


def _guard(source: ContextSource, rng: random.Random) -> Sample:
    query = random_query(rng, rng.choice(("harmful", "benign")))
    helps = rng.random() < 0.5
    reply = replies.answer(query.intent, helps, rng.choice(list(replies.REFUSALS)))
    label = "unsafe" if helps and query.intent.kind == "harmful" else "safe"
    return Sample(guard_text(query.text, reply), label)


def fingerprint() -> str:
    """Return a hash of what the weights are trained on: the grammar, every context of the library, and samples."""
    sampled = [astuple(sample) for sample in samples(NUM_FINGERPRINTED, seed=0)]
    return content_id(grammar.fingerprint(), ContextSource().texts, sampled)
