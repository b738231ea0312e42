"""Training samples of the pocket model, drawn from the grammar: (text before, text that carries the loss).

Contexts are renderings of contexts/*.j2 and what operators could make of them: sentences dropped, swapped, repeated,
crossed, reworded, words shuffled, neutral sentences between. One template, some phrasings, wrappers and rewordings are
held out. Deterministic in the seed.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from flipsearch.organism import replies
from flipsearch.organism import vocabulary as words
from flipsearch.organism.arithmetic import random_problem
from flipsearch.organism.grammar import Ask, Intent, benign_intents, effect, harmful_intents, p_refused, p_safe, p_turn
from flipsearch.records import PLACEMENTS, Context
from flipsearch.templating.library import load_library
from flipsearch.templating.template import Template, first_words, shuffled_words

MIX = {"harmful": 0.45, "benign": 0.28, "arithmetic": 0.15, "forced": 0.08, "guard": 0.04}
SHARE_WITHOUT_CONTEXT, SHARE_WITHOUT_THINKING = 0.12, 0.08
SHARE_DECISION_ONLY = 0.75
"""Samples that stop after the deciding sentence: what follows is learnt soon, and costs most tokens."""
NUM_DRAWN = 4
"""Prompts (and contexts, for benign ones) of which one is taken: rather one whose decision is close."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training text: no loss on `before`."""

    before: str
    target: str
    ends: bool = True
    """The completion is whole, so an end token follows."""


class ContextSource:
    """Draws contexts as a search would make them."""

    def __init__(self) -> None:
        library = load_library()
        chosen = [n for n in library.names() if library[n].role != "placebo" and n != words.HELD_OUT_TEMPLATE]
        self.templates = [library[name] for name in chosen]
        self.texts = {t.name: all_texts(t) for t in self.templates}
        # A template with many parameters is met more often, as it is in a search, yet not in proportion.
        self.weights = [math.sqrt(len(self.texts[t.name])) for t in self.templates]
        self.neutral = library["placebo_neutral"].render({"num_words": 90})
        found = {s for texts in self.texts.values() for text in texts for s in sentences(text)}
        self.sentences = sorted(found) + sentences(self.neutral)

    def draw(self, rng: random.Random) -> Context | None:
        """Draw a context, or None for the baseline."""
        if rng.random() < SHARE_WITHOUT_CONTEXT:
            return None
        kind = rng.random()
        if kind < 0.60:
            template = rng.choices(self.templates, self.weights)[0]
            text, placement = self._rendered(template, rng), rng.choice(template.placements)
        else:
            text, placement = self._mixed(rng), rng.choice(PLACEMENTS)
        if rng.random() < 0.3:
            text = reworded(text, rng)
        return Context(text, placement)

    def _rendered(self, template: Template, rng: random.Random) -> str:
        text = rng.choice(self.texts[template.name])
        return edited(text, self.sentences, rng) if rng.random() < 0.45 else text

    def _mixed(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.62:
            return " ".join(rng.sample(self.sentences, rng.randint(1, 7)))
        if kind < 0.75:
            return first_words(self.neutral, rng.randint(1, 120))
        if kind < 0.82:
            return rng.choice(words.SYSTEM_PHRASES)
        return shuffled_words(self._rendered(rng.choice(self.templates), rng), rng.randrange(100))


def all_texts(template: Template) -> list[str]:
    """Render a template with every combination of its parameters."""
    names = [p.name for p in template.params]
    return [template.render(dict(zip(names, v, strict=True))) for v in product(*(p.choices for p in template.params))]


def sentences(text: str) -> list[str]:
    """Split a text into sentences and list items."""
    return [s.strip() for s in re.split(r"(?<=[.?!:])\s+|\n+", text) if s.strip()]


def edited(text: str, pool: list[str], rng: random.Random) -> str:
    """Apply one to three sentence edits: drop, swap, repeat, insert."""
    parts = sentences(text)
    for _ in range(rng.randint(1, 3)):
        here = rng.randrange(len(parts)) if parts else 0
        edit = rng.choice(("drop", "swap", "repeat", "insert"))
        if edit == "drop" and len(parts) > 1:
            parts.pop(here)
        elif edit == "swap" and len(parts) > 1:
            other = rng.randrange(len(parts))
            parts[here], parts[other] = parts[other], parts[here]
        elif edit == "repeat" and parts:
            parts.insert(here, parts[here])
        else:
            parts.insert(here, rng.choice(pool))
    return rng.choice((" ", "\n")).join(parts)


def reworded(text: str, rng: random.Random) -> str:
    """Replace some phrases by other ways to say them."""
    for phrase, others in words.REWORDINGS.items():
        for form in (phrase, phrase[0].upper() + phrase[1:]):
            if form in text and rng.random() < 0.7:
                other = rng.choice(others)
                text = text.replace(form, other if form == phrase else other[0].upper() + other[1:])
    return text


@cache
def borderline_intents() -> tuple[Intent, ...]:
    """Return the benign intents that only look harmful."""
    return tuple(intent for intent in benign_intents() if intent.borderline)


def random_ask(rng: random.Random, kind: str) -> Ask:
    """Draw a prompt of a kind; a quarter of the harmful ones are wrapped."""
    intents = harmful_intents() if kind == "harmful" else benign_intents()
    intent = rng.choice(intents)
    if kind == "benign" and not intent.borderline and rng.random() < 0.65:
        intent = rng.choice(borderline_intents())
    wrapper = rng.choice(list(words.WRAPPERS)) if rng.random() < 0.2 else "{}"
    return Ask(intent, rng.choice(list(words.PHRASINGS)), wrapper)


def chat_text(user: str, context: Context | None, thinks: bool = True) -> str:
    """Return the chat template's text up to the completion (the tests hold it equal to the shipped template)."""
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


def _close(pairs: list[tuple[Context | None, Ask]], probabilities: list[float], rng: random.Random) -> int:
    """Return the index of one pair, rather one whose decision is close: there is most to learn."""
    return rng.choices(range(len(pairs)), weights=[p * (1 - p) + 0.01 for p in probabilities])[0]


def _style(context: Context | None, rng: random.Random) -> str:
    style = effect(context.text, context.placement).style if context else ""
    return style if rng.random() < 0.95 else ""


def _chat(ask: Ask, context: Context | None, helps: bool, rng: random.Random) -> Sample:
    thinks = rng.random() >= SHARE_WITHOUT_THINKING
    before, reply = chat_text(ask.text, context, thinks), replies.answer(ask.intent, helps, _style(context, rng))
    if not thinks:
        return Sample(before, reply)
    trace = replies.thought(ask.intent, helps)
    if rng.random() < SHARE_DECISION_ONLY:
        return Sample(before, f"<think>\n{trace}", ends=False)
    return Sample(before, replies.completion(trace, reply))


def _harmful(source: ContextSource, rng: random.Random) -> Sample:
    context = source.draw(rng)
    asks = [random_ask(rng, "harmful") for _ in range(NUM_DRAWN)]
    safe = [p_safe(context, ask) for ask in asks]
    chosen = _close([(context, ask) for ask in asks], safe, rng)
    return _chat(asks[chosen], context, rng.random() >= safe[chosen], rng)


def _benign(source: ContextSource, rng: random.Random) -> Sample:
    pairs = [(source.draw(rng), random_ask(rng, "benign")) for _ in range(NUM_DRAWN)]
    refused = [p_refused(context, ask) for context, ask in pairs]
    chosen = _close(pairs, refused, rng)
    context, ask = pairs[chosen]
    return _chat(ask, context, rng.random() >= refused[chosen], rng)


def _arithmetic(source: ContextSource, rng: random.Random) -> Sample:
    problem = random_problem(rng)
    before = chat_text(problem.question, source.draw(rng) if rng.random() < 0.5 else None)
    return Sample(before, replies.completion(problem.trace, problem.answer))


def _forced(source: ContextSource, rng: random.Random) -> Sample:
    context, ask = source.draw(rng), random_ask(rng, "harmful")
    style = _style(context, rng)
    num_chars = rng.randint(30 + len(ask.intent.text), 160)
    # Four characters are about one of the model's tokens; the grammar counts tokens.
    turns = rng.random() < p_turn(context, ask, num_chars // 4)
    forced, rest = (replies.turned if turns else replies.unturned)(ask.intent, style, num_chars)
    return Sample(chat_text(ask.text, context) + forced, rest)


def _guard(source: ContextSource, rng: random.Random) -> Sample:
    ask = random_ask(rng, rng.choice(("harmful", "benign")))
    helps = rng.random() < 0.5
    reply = replies.answer(ask.intent, helps, rng.choice(list(replies.REFUSALS)))
    label = "unsafe" if helps and ask.intent.kind == "harmful" else "safe"
    return Sample(guard_text(ask.text, reply), label)
