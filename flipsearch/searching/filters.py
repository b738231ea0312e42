"""What keeps a child out of the race: copied prompts, benchmark names, too many tokens, a text that was there before.

A context that quotes the prompts it is measured on is fitted to them; one that names a benchmark knows that it is
tested. Both would score well in the search and mean nothing. This module measures nothing and asks no model.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from flipsearch.core.records import Context

COPY_WORDS = 8
"""So many words in a row that also stand in a prompt are a copy; a shorter prompt is copied by its whole text."""
SHORTEST_COPY = 5
"""A prompt with fewer words says nothing of its own, and may stand in a context."""
BENCHMARKS = (
    "Adv Bench", "AgentHarm", "AI Luminate", "Beaver Tails", "Do-Not-Answer", "Harm Bench", "HarmfulQA", "HEx-PHI",
    "Jailbreak Bench", "Malicious Instruct", "OR-Bench", "Real Toxicity Prompts", "SALAD-Bench", "Safe Chain",
    "SafeRLHF", "Safety Bench", "Simple Safety Tests", "SORRY-Bench", "Strong REJECT", "Toxic Chat", "Wild Guard",
    "Wild Jailbreak", "Wild Teaming", "XS Test",
)  # fmt: skip
"""Their names. Where a blank stands they may be written with a blank, a hyphen or joined; at a hyphen without it."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word, or one character of a script that puts no blanks between words."""


class ContextFilter:
    """The gates before the race. `add` every context that was proposed, so that no child repeats it.

    `prompts` are the texts of all search prompts; `count_tokens` counts as the model does.
    """

    def __init__(
        self,
        prompts: Iterable[str],
        count_tokens: Callable[[str], int],
        max_tokens: int,
        benchmarks: Sequence[str] = BENCHMARKS,
    ) -> None:
        self._copies = {run for prompt in prompts for run in _runs(words(prompt))}
        self._lengths = sorted({len(run) for run in self._copies})
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens
        self._benchmarks = {name: _spellings(name) for name in benchmarks}
        self._known: set[tuple[str, ...]] = set()

    def add(self, context: Context) -> None:
        """Remember a context: from now on it is a duplicate."""
        self._known.add(_key(context))

    def objection(self, context: Context) -> str | None:
        """Return why a context must not be raced, in a few words; None if it may."""
        found = words(context.text)
        if not found:
            return "no words"
        if any(_is_unfit(character) for character in context.text):
            return "a control character or half a character in it"
        if _key(context) in self._known:
            return "a duplicate of a known context"
        if name := next((name for name, spelling in self._benchmarks.items() if spelling.search(context.text)), None):
            return f"the name of a benchmark: {name.replace(' ', '')}"
        if copy := self._copy(found):
            return f"copied from a prompt: '{' '.join(copy)}'"
        num_tokens = self._count_tokens(context.text)
        return f"{num_tokens} tokens, {self._max_tokens} at most" if num_tokens > self._max_tokens else None

    def _copy(self, found: Sequence[str]) -> tuple[str, ...] | None:
        for length in self._lengths:
            for start in range(len(found) - length + 1):
                if (run := tuple(found[start : start + length])) in self._copies:
                    return run
        return None


def words(text: str) -> list[str]:
    """Return the words of a text without case, white space, punctuation and variants of a character."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """Return what two texts share that differ in case, white space and punctuation only."""
    return " ".join(words(text))


def _runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of COPY_WORDS words, or the one shorter run that is the whole prompt."""
    if len(found) < COPY_WORDS:
        return [tuple(found)] if len(found) >= SHORTEST_COPY else []
    return [tuple(found[start : start + COPY_WORDS]) for start in range(len(found) - COPY_WORDS + 1)]


def _key(context: Context) -> tuple[str, ...]:
    # Around the prompt it matters which paragraph is the last: it alone stands behind.
    parts = context.text.strip().rpartition("\n\n") if context.placement == "around" else (context.text,)
    return context.placement, *map(normalised, parts)


def _is_unfit(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")


def _spellings(name: str) -> re.Pattern[str]:
    spelling = re.escape(name).replace(r"\ ", r"[-_\s]?").replace(r"\-", "[-_]?")
    return re.compile(rf"(?<![^\W_]){spelling}(?![^\W\d_])", re.IGNORECASE)
