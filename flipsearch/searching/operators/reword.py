"""Replaces phrases by synonyms from a table, phrases.toml, whose groups hold phrases that mean the same."""

import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from flipsearch.core.errors import PluginError
from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import child_of

PHRASES = Path(__file__).parent / "phrases.toml"
MOST_CHANGES = 3
"""Phrases replaced at a time."""


class Reword:
    """Replaces one to three phrases by others of their group; a capital at the start stays one."""

    name = "reword"
    num_parents = 1

    def __init__(self, groups: Sequence[Sequence[str]] | None = None) -> None:
        groups = load_phrases() if groups is None else groups
        self._group = {phrase.lower(): tuple(group) for group in groups for phrase in group}
        # The longest first: a phrase may begin like a shorter one.
        listed = sorted(self._group, key=lambda phrase: (-len(phrase), phrase))
        self._any = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)", re.IGNORECASE)

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with other phrases; None if it has none of the table."""
        text = parents[0].context.text
        matches = [match for match in self._any.finditer(text) if match[0].lower() in self._group]
        if not matches:
            return None
        chosen = rng.sample(matches, rng.randint(1, min(MOST_CHANGES, len(matches))))
        for match in sorted(chosen, key=lambda match: -match.start()):
            phrase = match[0].lower()
            synonym = rng.choice([other for other in self._group[phrase] if other.lower() != phrase])
            if match[0][0].isupper():
                synonym = synonym[0].upper() + synonym[1:]
            text = text[: match.start()] + synonym + text[match.end() :]
        return child_of(self.name, parents, text)


def load_phrases(path: Path = PHRASES) -> tuple[tuple[str, ...], ...]:
    """Return the groups of a phrase table (TOML: groups = [[…], …]).

    Raises PluginError for a file that is no such table, a group of fewer than two phrases, and a repeated phrase.
    """
    try:
        groups = tomllib.loads(path.read_text(encoding="utf-8"))["groups"]
    except (OSError, ValueError, KeyError) as error:
        raise PluginError(f"'{path}' cannot be read as a phrase table ({type(error).__name__}: {error}).") from error
    seen: set[str] = set()
    for group in groups:
        phrases = group if isinstance(group, list) else [group]
        if len(phrases) < 2 or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise PluginError(f"{path}: a group is a list of two or more phrases, got {group!r}.")
        for phrase in phrases:
            if phrase.lower() in seen:
                raise PluginError(f"{path}: the phrase '{phrase}' is there twice.")
            seen.add(phrase.lower())
    return tuple(map(tuple, groups))
