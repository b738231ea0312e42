"""Breeds contexts: operators, chosen at random, make children of the parents that they are given.

    parents --sampled by weight--> operator --child--> filter --> contexts

The same children for the same seed and parents. It measures nothing, and calls no model but through an operator.

The filter keeps out of the race what copies prompts, names benchmarks, is too long, or repeats a known text. A context
that quotes the prompts it is measured on is fitted to them; one that names a benchmark knows that it is tested. Both
would score well in the search and mean nothing.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from flipsearch.core.errors import PluginError
from flipsearch.core.measurements import Measurement
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Placement
from flipsearch.core.studies import OperatorGain, Parent
from flipsearch.judging.contract import plugin_errors_as
from flipsearch.measuring.measure import flip_difference
from flipsearch.statistics.intervals import mean_interval

PER_COSTLY = 24
"""Children for each one that a model makes: few, and all of those race."""
PATIENCE = 6
"""Failures (not applicable, or filtered) after which an operator rests for the rest of a call."""


class Breeder:
    """Makes contexts that did not race before, and counts by how much each operator's children are better.

    Raises PluginError if two operators have one name.
    """

    def __init__(self, operators: Sequence[Operator], context_filter: "ContextFilter", seed: int) -> None:
        self._operators = {operator.name: operator for operator in operators}
        if len(self._operators) < len(operators):
            raise PluginError(f"two operators have one name: {', '.join(sorted(o.name for o in operators))}.")
        self._filter = context_filter
        self._random = random.Random(seed)
        self.gains = OperatorGains(list(self._operators))

    def breed(self, parents: Sequence[Parent], num: int, weights: Sequence[float] = ()) -> list[Context]:
        """Return up to `num` different children; fewer if all operators run dry.

        Parents are sampled by `weights`, () is all alike. A child that is not chosen to race may come again.

        Raises PluginError for an operator that fails.
        """
        for parent in parents:
            self._filter.add(parent.context)
        children: dict[str, Context] = {}
        failures = {name: 0 for name, operator in self._operators.items() if operator.num_parents <= len(parents)}
        num_costly = 0
        while len(children) < num:
            able = [name for name, count in failures.items() if count < PATIENCE]
            if num_costly >= max(1, num // PER_COSTLY):
                able = [name for name in able if not self.is_costly(name)]
            if not able:
                break
            name = self._random.choice(able)
            num_costly += self.is_costly(name)
            child = self._make_child(self._operators[name], parents, weights or [1.0] * len(parents))
            if child is None or child.context_id in children or self._filter.objection(child) is not None:
                failures[name] += 1
            else:
                children[child.context_id] = child
        return list(children.values())

    def is_costly(self, operator: str) -> bool:
        """Return whether the operator of this name calls a model for each child."""
        return bool(getattr(self._operators.get(operator), "is_costly", False))

    def _make_child(self, operator: Operator, able: Sequence[Parent], weights: Sequence[float]) -> Context | None:
        """One child by one operator, of different parents; None if it does not apply."""
        left, parents = list(range(len(able))), []
        for _ in range(operator.num_parents):
            position = self._random.choices(range(len(left)), [weights[index] for index in left])[0]
            parents.append(able[left.pop(position)])
        # A generator of its own: what one operator samples does not change what the next ones do.
        rng = random.Random(self._random.getrandbits(64))
        with plugin_errors_as(PluginError, f"operator '{operator.name}' failed"):
            return operator.make(parents, rng)


class OperatorGains:
    """Counts, per operator, the gains in flip rate of its children."""

    def __init__(self, names: Sequence[str]) -> None:
        self._gains: dict[str, list[float]] = {name: [] for name in names}
        self._num_better = Counter[str]()

    def learn(self, child: Context, measured: Measurement, parents: Sequence[Measurement], *, admissible: bool) -> None:
        """Count the gain of a child that raced over the better of its parents.

        `admissible` says whether the child is within the caps. Contexts that no operator made, and those without a
        prompt in common with a parent, are passed over.
        """
        # Parents are the best so far on these very prompts: gains are too low, for all operators alike.
        gains = [gain.value for parent in parents if (gain := flip_difference(measured, parent)) is not None]
        if child.operator in self._gains and gains:
            self._gains[child.operator].append(min(gains))
            self._num_better[child.operator] += admissible and min(gains) > 0

    def rows(self) -> tuple[OperatorGain, ...]:
        """Return one row per operator, the largest mean gain first, those without a raced child last."""
        rows = []
        for name, gains in self._gains.items():
            mean = mean_interval(gains, -1.0, 1.0)
            rows.append(OperatorGain(name, len(gains), self._num_better[name], mean.value, mean.low, mean.high))
        return tuple(sorted(rows, key=lambda row: (row.mean_gain is None, -(row.mean_gain or 0.0), row.operator)))


COPY_WORDS = 8
"""So many words in a row that are also in a prompt are a copy; a shorter prompt is copied by its whole text."""
SHORTEST_COPY = 5
"""A prompt with fewer words says nothing of its own, and may be in a context."""
BENCHMARKS = (
    "Adv Bench", "AgentHarm", "AI Luminate", "Beaver Tails", "Do-Not-Answer", "Harm Bench", "HarmfulQA", "HEx-PHI",
    "Jailbreak Bench", "Malicious Instruct", "OR-Bench", "Real Toxicity Prompts", "SALAD-Bench", "Safe Chain",
    "SafeRLHF", "Safety Bench", "Simple Safety Tests", "SORRY-Bench", "Strong REJECT", "Toxic Chat", "Wild Guard",
    "Wild Jailbreak", "Wild Teaming", "XS Test",
)  # fmt: skip
"""A blank in a name matches a blank, a hyphen or nothing; a hyphen matches a hyphen or nothing."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word, or one character of a script that puts no blanks between words."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BENCHMARK = re.compile(
    "(?<![^\\W_])(?:"
    + "|".join(f"({re.escape(name)})".replace(r"\ ", r"[-_\s]?").replace(r"\-", "[-_]?") for name in BENCHMARKS)
    + ")(?![^\\W\\d_])",
    re.IGNORECASE,
)
"""Each name is a group of its own."""


class ContextFilter:
    """Says what may race. `add` every context that was proposed, so that no child repeats it.

    `prompts` are the texts of all search prompts; `count_tokens` counts as the model does; placements that are `same`
    as another make no difference.
    """

    def __init__(
        self,
        prompts: Iterable[str],
        count_tokens: Callable[[str], int],
        max_tokens: int,
        same: Mapping[Placement, Placement] | None = None,
    ) -> None:
        self._same = same or {}
        self._copies: set[tuple[str, ...]] = set()
        for text in prompts:
            prompt = normalised(text).split()
            if len(prompt) >= SHORTEST_COPY:
                last = max(1, len(prompt) - COPY_WORDS + 1)
                self._copies |= {tuple(prompt[start : start + COPY_WORDS]) for start in range(last)}
        self._lengths = sorted({len(run) for run in self._copies})
        self._starts = {run[:SHORTEST_COPY] for run in self._copies}
        """No copy begins otherwise: most places in a text are passed over by this alone."""
        self._count_tokens, self._max_tokens = count_tokens, max_tokens
        self._known: set[tuple[str, ...]] = set()

    def add(self, context: Context) -> None:
        """Remember a context: from now on it is a duplicate."""
        self._known.add(self._key(context))

    def objection(self, context: Context) -> str | None:
        """Return why a context must not race, in a few words; None if it may."""
        text_words = normalised(context.text).split()
        if not text_words:
            return "no words"
        if _CONTROL.search(context.text):
            return "a control character or half a character in it"
        if self._key(context) in self._known:
            return "a duplicate of a known context"
        if (named := _BENCHMARK.search(context.text)) and named.lastindex:
            return f"the name of a benchmark: {BENCHMARKS[named.lastindex - 1].replace(' ', '')}"
        for start in range(len(text_words) - SHORTEST_COPY + 1):
            if tuple(text_words[start : start + SHORTEST_COPY]) in self._starts:
                runs = [tuple(text_words[start : start + length]) for length in self._lengths]
                if run := next((run for run in runs if run in self._copies), None):
                    return f"copied from a prompt: '{' '.join(run)}'"
        num_tokens = self._count_tokens(context.text)
        return f"{num_tokens} tokens, {self._max_tokens} at most" if num_tokens > self._max_tokens else None

    def _key(self, context: Context) -> tuple[str, ...]:
        """The same for contexts that differ in nothing that matters."""
        # Around the prompt it matters which paragraph is the last: it alone comes after the prompt.
        parts = context.text.strip().rpartition("\n\n") if context.placement == "around" else (context.text,)
        return self._same.get(context.placement, context.placement), *map(normalised, parts)


def normalised(text: str) -> str:
    """Return the words of a text, joined by blanks, without case, punctuation and variants of a character."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
