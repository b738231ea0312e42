"""Replaces phrases by synonyms from phrases.toml: each of its groups holds two or more phrases that mean the same."""

import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

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
        groups = tomllib.loads(PHRASES.read_text(encoding="utf-8"))["groups"] if groups is None else groups
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
            synonym = rng.choice([synonym for synonym in self._group[phrase] if synonym.lower() != phrase])
            if match[0][0].isupper():
                synonym = synonym[0].upper() + synonym[1:]
            text = text[: match.start()] + synonym + text[match.end() :]
        return child_of(self.name, parents, text)
