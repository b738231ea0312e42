"""The contexts of the pocket model's corpus: renderings of contexts/*.j2, edits as operators make them, and lookalikes.

Sentences are dropped, swapped, repeated, crossed and reworded, with neutral ones between; words are shuffled or
replaced, which leaves no cue. One template is held out. Deterministic in the given random generator.
"""

import math
import random
import re
from itertools import product

from flipsearch.core.records import PLACEMENTS, Context
from flipsearch.templating.library import POCKET_CONTEXTS, load_library
from flipsearch.templating.template import Template, first_words, shuffled_words
from pocket_model import vocabulary as words

SHARE_WITHOUT_CONTEXT = 0.12


class ContextSource:
    """Samples contexts as a search would make them."""

    def __init__(self) -> None:
        library = load_library(shipped=POCKET_CONTEXTS)
        chosen = [n for n in library.names() if library[n].role != "placebo" and n != words.HELD_OUT_TEMPLATE]
        self.templates = [library[name] for name in chosen]
        self.texts = {t.name: all_texts(t) for t in self.templates}
        # A template with many parameters is sampled more often, as in a search, but not in proportion.
        self.weights = [math.sqrt(len(self.texts[t.name])) for t in self.templates]
        self.neutral = library["placebo_neutral"].render({"num_words": 90})
        distinct = {s for texts in self.texts.values() for text in texts for s in sentences(text)}
        self.sentences = sorted(distinct) + sentences(self.neutral)
        self.words = sorted({word for sentence in self.sentences for word in sentence.split()})

    def sample(self, rng: random.Random) -> Context | None:
        """Return a random context, or None for the baseline."""
        if rng.random() < SHARE_WITHOUT_CONTEXT:
            return None
        kind = rng.random()
        if kind < 0.55:
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
        if kind < 0.46:
            return " ".join(rng.sample(self.sentences, rng.randint(1, 7)))
        if kind < 0.60:
            return first_words(self.neutral, rng.randint(1, 120))
        text = self._rendered(rng.choices(self.templates, self.weights)[0], rng)
        if kind < 0.75:
            return shuffled_words(text, rng.randrange(10_000))
        if kind < 0.87:
            return " ".join(shuffled_words(s, rng.randrange(100)) if rng.random() < 0.5 else s for s in sentences(text))
        return self._garbled(text, rng)

    def _garbled(self, text: str, rng: random.Random) -> str:
        """Return the text with random words replaced, which destroys its cues."""
        share = rng.uniform(0.1, 0.6)
        return " ".join(rng.choice(self.words) if rng.random() < share else word for word in text.split())


def all_texts(template: Template) -> list[str]:
    """Return the text of a template for every combination of its parameters."""
    names = [p.name for p in template.params]
    return [template.render(dict(zip(names, v, strict=True))) for v in product(*(p.choices for p in template.params))]


def sentences(text: str) -> list[str]:
    """Return the sentences and list items of a text."""
    return [s.strip() for s in re.split(r"(?<=[.?!:])\s+|\n+", text) if s.strip()]


def edited(text: str, pool: list[str], rng: random.Random) -> str:
    """Return the text after one to three sentence edits: drop, swap, repeat, insert."""
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
    """Return the text with some phrases reworded."""
    for phrase, others in words.REWORDINGS.items():
        for form in (phrase, phrase[0].upper() + phrase[1:]):
            if form in text and rng.random() < 0.7:
                other = rng.choice(others)
                text = text.replace(form, other if form == phrase else other[0].upper() + other[1:])
    return text
