"""Says some phrases in other words, from a table of phrases that can stand for each other."""

import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from flipsearch.core.errors import PluginError
from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import edited

PHRASES = Path(__file__).parent / "phrases.toml"
MOST_CHANGES = 3
"""Phrases changed at a time."""
Groups = Sequence[Sequence[str]]


class Reword:
    """Replaces one to three phrases by others of their group; a capital at the start stays one."""

    name = "reword"
    num_parents = 1

    def __init__(self, groups: Groups | None = None) -> None:
        groups = load_phrases() if groups is None else groups
        self._group = {phrase.lower(): tuple(group) for group in groups for phrase in group}
        # The longest first: a phrase may begin like a shorter one.
        listed = sorted(self._group, key=lambda phrase: (-len(phrase), phrase))
        self._any = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)", re.IGNORECASE)

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return the parent with other words; None if it has no phrase of the table."""
        text = parents[0].context.text
        found = [match for match in self._any.finditer(text) if match[0].lower() in self._group]
        if not found:
            return None
        chosen = rng.sample(found, rng.randint(1, min(MOST_CHANGES, len(found))))
        for match in sorted(chosen, key=lambda match: -match.start()):
            text = text[: match.start()] + self._other(match[0], rng) + text[match.end() :]
        return edited(self.name, parents, text)

    def _other(self, phrase: str, rng: random.Random) -> str:
        other = rng.choice([one for one in self._group[phrase.lower()] if one.lower() != phrase.lower()])
        return other[0].upper() + other[1:] if phrase[0].isupper() else other


def load_phrases(path: Path = PHRASES) -> tuple[tuple[str, ...], ...]:
    """Return the groups of a phrase table (TOML: groups = [[…], …]).

    Raises PluginError for a file that is none, a group of fewer than two phrases, and a phrase that is there twice.
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
