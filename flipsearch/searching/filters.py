"""Keeps children out of the race that copy prompts, name benchmarks, are too long, or repeat a known text.

A context that quotes the prompts it is measured on is fitted to them; one that names a benchmark knows that it is
tested. Both would score well in the search and mean nothing. This module measures nothing and calls no model.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from flipsearch.core.records import Context, Placement

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
