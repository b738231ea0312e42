"""A world: prompts, texts and a model whose answers follow from formulas, unlike the pocket model's grammar.

A harmful prompt has a hardness h ~ N(0, 1) and one of 8 categories. Without a context it is answered with harm if
h > BASE. Under a text of strength s it is refused if s + (what the text does for its category) + noise >= h. Strength
is a sum over what stands in the text: its different sentences, its words, pairs of sentences that stand together, the
sentence that comes first, the placement; sentences that are said twice and every word beyond LONG count against it. The
noise belongs to the pair of text and prompt; half of its variance comes from the sentences, so that texts that are
alike flip the same prompts. A benign prompt is refused if bluntness + noise reaches its margin; bluntness is a sum of
the same kind, correlated with strength. What a world is made of is its `Rules`; everything is a function of the seed
and the texts, and true rates are those of the whole population, by quadrature.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from flipsearch.core.records import (
    AnswerKind,
    Context,
    Exchange,
    Label,
    PrefixScore,
    Prompt,
    Request,
    Rollout,
    Sampling,
    Split,
    Verdict,
)
from flipsearch.templating.library import TemplateLibrary
from flipsearch.templating.template import parse_template

Array = NDArray[np.float64]
BASE = -1.2
"""88 % of the harmful prompts are harder, and answered with harm without a context."""
NUM_CATEGORIES = 8
LONG = 60
"""Words that a text may have before more of them count against it."""
REFUSAL_WORDS, ANSWER_WORDS = 12, 60
"""Tokens of a refusal, and of any other answer."""
NUM_SENTENCES, NUM_TEMPLATES = 48, 8
SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "qui",
    "ro",
    "su",
    "ta",
    "ve",
    "wi",
    "xo",
    "zu",
]
PLACEMENTS = ("system", "before", "after")
GRID = np.linspace(BASE, 7.0, 4001)
DENSITY = np.exp(-(GRID**2) / 2)


@dataclass(frozen=True)
class Rules:
    """What a world is made of; effects are standard deviations on the scale of hardness."""

    name: str
    sentences: float = 0.35
    """Of each different sentence."""
    words: float = 0.0
    """Of each different word."""
    pairs: float = 0.0
    """Of two sentences in one text."""
    categories: float = 0.0
    """Of each sentence on each category."""
    first: float = 0.0
    """Of the sentence that comes first."""
    places: float = 0.2
    """Of the placement."""
    own: float = 0.2
    """Of the text as a whole."""
    noise: float = 0.6
    """Of a text and a prompt."""
    level: float = -0.9
    """Strength of a text whose effects are all 0."""
    bluntness: float = 0.25
    """Of each different sentence."""
    correlation: float = 0.3
    """Of a sentence's bluntness with its strength."""
    margin: float = 2.3
    """Mean of the benign prompts' margins."""
    refused: float = 0.0
    """Share of the benign prompts that are refused without a context."""
    num_unsafe: int = 90
    """Harmful prompts a split that are unsafe without a context, about."""
    num_benign: int = 60
    unscored: float = 0.0
    """Share of the answers that cannot be scored."""
    errors: float = 0.0
    """Share of the answers to harmful prompts that the judge labels wrongly."""
    score_correlation: float | None = None
    """Correlation of a prefix score with the margin by which its prompt is refused; None: the model cannot score."""


class World:
    """One world: model, judge, prompts and templates; a backend, and a scorer of prefixes if its rules say so."""

    notes: tuple[str, ...] = ()
    revision: str | None = None

    def __init__(self, rules: Rules, seed: int) -> None:
        self.rules, self.seed = rules, seed
        self.model_id = f"world {rules} {seed}"
        self._margins: dict[tuple[str, str, str], Array] = {}
        self._prompts = self._make_prompts()
        self._rows = {prompt.text: number for number, prompt in enumerate(self._prompts)}
        self._harmful = np.array([prompt.kind == "harmful" for prompt in self._prompts])
        self._hardness = self._sample("hardness", len(self._prompts))
        self._categories = np.arange(len(self._prompts)) % NUM_CATEGORIES

    def prompts(self) -> list[Prompt]:
        """Return the prompts of both splits."""
        return list(self._prompts)

    def _make_prompts(self) -> list[Prompt]:
        num_harmful = round(self.rules.num_unsafe / float(ndtr(-BASE)))
        splits: tuple[Split, ...] = ("search", "confirm")
        return [
            Prompt(f"{kind} {split} {number}", "harmful" if kind == "bad" else "benign", split=split)
            for split in splits
            for kind, count in (("bad", num_harmful), ("good", self.rules.num_benign))
            for number in range(count)
        ]

    @cached_property
    def sentences(self) -> list[str]:
        """Every sentence of the templates, 5 to 9 words each."""
        generator = np.random.default_rng(7)  # the same words in all worlds; what they do differs
        words = ["".join(generator.choice(SYLLABLES, size=generator.integers(2, 4))) for _ in range(120)]
        made = []
        for _ in range(NUM_SENTENCES):
            chosen = generator.choice(words, size=generator.integers(5, 10), replace=False)
            made.append(" ".join(chosen).capitalize() + ".")
        return made

    @cached_property
    def library(self) -> TemplateLibrary:
        """Eight templates of three parameters and a fixed sentence, 27 texts and three placements each; placebos."""
        templates = []
        for number in range(NUM_TEMPLATES):
            own = self.sentences[number * 6 : number * 6 + 6] + self.sentences[(number * 6 + 9) % 48 :][:4]
            values = [own[0:3], own[3:6], ["", own[7], own[8]]]
            params = "\n".join(f"p{i} = {value!r}".replace("'", '"') for i, value in enumerate(values))
            head = f'{{#\ndescription = "t{number}"\nsource = "benchmark"\nplacements = ["system", "before", "after"]'
            body = f"{own[9 - (number % 2)] if len(own) > 9 else own[6]} {{{{ p0 }}}} {{{{ p1 }}}} {{{{ p2 }}}}"
            templates.append((f"t{number}", f"{head}\n[params]\n{params}\n#}}\n{body}"))
        placebo = '{#\ndescription = "p"\nsource = "benchmark"\nrole = "placebo"\nplacements = ["system"]\n#}\n'
        templates.append(("neutral", f"{placebo}The weather is fine today."))
        return TemplateLibrary(parse_template(text, name, f"{name}.j2") for name, text in templates)

    def true_rates(self, context: Context) -> tuple[float, float]:
        """Return the flip rate and the added over-refusal over the whole population of prompts, by quadrature."""
        rules, text = self.rules, context.text
        flipped = [
            float((DENSITY * ndtr((self._strength(context) + effect - GRID) / rules.noise)).sum() / DENSITY.sum())
            for effect in self._category_effects(text)
        ]
        spread = float(np.hypot(1.0, rules.noise))
        refused = float(ndtr((self._bluntness(context) - rules.margin) / spread))
        return float(np.mean(flipped)), max(0.0, refused - rules.refused) if text else 0.0

    def outcomes(self, context: Context) -> Array:
        """Return for each prompt of `prompts()` by how much it is refused under the context; harm or help below 0."""
        if not context.text.strip():
            base = BASE - self._hardness
            level = float(ndtri(max(self.rules.refused, 1e-9)))
            return np.where(self._harmful, base, level - self._hardness)
        key = "margin", context.placement, context.text
        if key not in self._margins:
            rules, text = self.rules, context.text
            parts = _split(text)
            shared = np.sum([self._sample(f"noise {part}", len(self._prompts)) for part in parts], axis=0)
            own = self._sample(f"noise {context.placement} {text}", len(self._prompts))
            noise = rules.noise * (shared / np.sqrt(max(1, len(parts))) + own) / np.sqrt(2)
            strength = self._strength(context) + self._category_effects(text)[self._categories]
            blunt = self._bluntness(context) - rules.margin
            self._margins[key] = np.where(self._harmful, strength, blunt) + noise - self._hardness
        return self._margins[key]

    def label(self, context: Context, prompt: Prompt) -> Label:
        """Return what the judge says of the answer to a harmful prompt."""
        row = self._rows[prompt.text]
        safe = bool(self.outcomes(context)[row] >= 0)
        fate = self._number("fate", prompt.text, context.text, context.placement)
        if fate < self.rules.unscored and context.text:
            return Label.UNSCORED
        wrong = self._number("judge", prompt.text, context.text, context.placement) < self.rules.errors
        return Label.SAFE if safe != wrong else Label.UNSAFE

    def refuses(self, context: Context, prompt: Prompt) -> bool:
        """Return whether the answer is a refusal."""
        return bool(self.outcomes(context)[self._rows[prompt.text]] >= 0)

    def num_tokens(self, context: Context, prompt: Prompt) -> int:
        """Return the length of an answer."""
        return REFUSAL_WORDS if self.refuses(context, prompt) else ANSWER_WORDS

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request, all in one batch."""
        yield [self._rollout(request, sampling) for request in requests]

    def _rollout(self, request: Request, sampling: Sampling) -> Rollout:
        context, prompt = request.context or Context(""), request.prompt
        refuses = self.refuses(context, prompt)
        label = self.label(context, prompt).value if prompt.kind == "harmful" else "safe"
        return Rollout(
            prompt_id=prompt.prompt_id,
            context_id=request.context_id,
            model_id=self.model_id,
            sampling=sampling,
            sample_index=request.sample_index,
            completion=f"{'refuses' if refuses else 'answers'} {label}",
            completion_ids=tuple(range(self.num_tokens(context, prompt))),
            num_prompt_tokens=len(f"{context.text} {prompt.text}".split()),
            finish_reason="stop",
            prefill=request.prefill,
        )

    def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def close(self) -> None:
        """There is nothing to unload."""

    def _strength(self, context: Context) -> float:
        rules, parts = self.rules, _split(context.text)
        different = list(dict.fromkeys(parts))
        words = dict.fromkeys(context.text.lower().replace(".", "").split())
        total = rules.level + rules.places * self._normal("place", context.placement)
        total += rules.sentences * sum(self._normal("sentence", part) for part in different)
        total += rules.words * sum(self._normal("word", word) for word in words) if rules.words else 0.0
        if rules.pairs:
            couples = [(a, b) for i, a in enumerate(different) for b in different[i + 1 :]]
            total += rules.pairs * sum(self._normal("pair", *sorted(couple)) for couple in couples)
        if rules.first and different:
            total += rules.first * self._normal("first", different[0])
        total += rules.own * self._normal("own", context.placement, context.text)
        return total - 0.3 * (len(parts) - len(different)) - 0.02 * max(0, len(context.text.split()) - LONG)

    def _category_effects(self, text: str) -> Array:
        total = np.zeros(NUM_CATEGORIES)
        if self.rules.categories:
            for part in dict.fromkeys(_split(text)):
                total += self.rules.categories * self._sample(f"category {part}", NUM_CATEGORIES)
        return total

    def _bluntness(self, context: Context) -> float:
        rules, share = self.rules, self.rules.correlation
        total = 0.0
        for part in dict.fromkeys(_split(context.text)):
            own = self._normal("blunt", part)
            total += share * self._normal("sentence", part) + float(np.sqrt(1 - share**2)) * own
        return rules.bluntness * total + 0.5 * rules.own * self._normal("blunt own", context.placement, context.text)

    def _sample(self, what: str, num: int) -> Array:
        digest = hashlib.sha256(f"{self.seed}|{what}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(num)

    def _normal(self, *what: str) -> float:
        return float(ndtri(self._number(*what)))

    def _number(self, *what: str) -> float:
        """Return the number in (0, 1) that belongs to these words in this world."""
        digest = hashlib.sha256("|".join([str(self.seed), *what]).encode()).digest()
        return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48


class ScoringWorld(World):
    """A world whose model can score known answers; how well that tells what it does is in the rules."""

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return scores whose drop is correlated with the margin by which the prompt is refused."""
        return [self._score(request) for request in requests]

    def _score(self, request: Request) -> PrefixScore:
        length, rho = len(request.prefill), self.rules.score_correlation or 0.0
        if request.context is None:
            return PrefixScore((-0.5,) * length, length)
        context, row = request.context, self._rows[request.prompt.text]
        luck = self._normal("reading", request.prompt.text, context.text, context.placement)
        signal = rho * float(self.outcomes(context)[row]) + float(np.sqrt(1 - rho**2)) * luck
        drop = 8.0 * max(0.0, 1.0 + signal)
        return PrefixScore((-0.5 - drop / length,) * length, 0 if signal >= 0 else length)


class WorldJudge:
    """Reads the label out of the world's answers."""

    name = "world"
    identity = "world"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return the label that stands in the answer."""
        return [self._verdict(exchange) for exchange in exchanges]

    def _verdict(self, exchange: Exchange) -> Verdict:
        done, said = exchange.completion.split()
        label = Label(said)
        if label is Label.UNSCORED:
            return Verdict(label, reason="cut")
        kind: AnswerKind = "refusal" if done == "refuses" else "help"
        return Verdict(
            label, float(label is Label.UNSAFE), float(done == "refuses"), kind=kind if label is Label.SAFE else None
        )


def make_world(rules: Rules, seed: int) -> World:
    """Return a world of these rules."""
    return World(rules, seed) if rules.score_correlation is None else ScoringWorld(rules, seed)


def _split(text: str) -> list[str]:
    return [part.strip().lower() for part in text.replace("\n", " ").split(".") if part.strip()]


WORLDS = [
    Rules("sentences"),
    Rules("sentences, scored well", score_correlation=0.9),
    Rules("sentences, scored badly", score_correlation=0.3),
    Rules("words", sentences=0.1, words=0.18),
    Rules("pairs", sentences=0.15, pairs=0.2),
    Rules("own", sentences=0.15, own=0.6),
    Rules("categories", sentences=0.2, categories=0.45),
    Rules("blunt", bluntness=0.5, correlation=0.7, margin=1.9),
    Rules("few", num_unsafe=12, num_benign=40),
    Rules("forty", num_unsafe=40, num_benign=40),
    Rules("unscored and wrong", unscored=0.12, errors=0.12),
]
"""The engine may be tuned in these."""
KEPT_BACK = [
    Rules("first sentence", sentences=0.2, first=0.6),
    Rules("words and pairs", sentences=0.1, words=0.12, pairs=0.15, num_unsafe=40),
    Rules("refusing model", bluntness=0.45, correlation=0.6, margin=1.8, refused=0.14, num_unsafe=40),
    Rules("five", num_unsafe=5, num_benign=30),
    Rules("categories, wrong judge", sentences=0.2, categories=0.35, errors=0.2),
    Rules("hard and noisy", level=-1.6, noise=1.0, score_correlation=0.5),
]
"""These decide in the end: nothing was tuned in them."""
