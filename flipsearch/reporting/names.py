"""Short names of a study's contexts that distinguish them: where a context comes from, and what makes it another one.

A template is named with its parameters, a child of an operator with what it changed in its parent. Names quote
contexts, which are hostile text.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flipsearch.core.records import Context
from flipsearch.core.studies import Study, Trial

LONGEST_QUOTE = 34
"""Characters of a context that its name quotes at most."""


@dataclass(frozen=True, slots=True)
class WordChange:
    """A run of words of a text that is kept, removed or added."""

    kind: str
    """same, removed or added."""
    words: str


@lru_cache(maxsize=4096)
def word_changes(before: str, after: str) -> tuple[WordChange, ...]:
    """Return how one text becomes another: whole lines where they come or go, word by word where one is rewritten."""
    changes: list[WordChange] = []
    for operation, old, new in _edits(before.splitlines(keepends=True), after.splitlines(keepends=True)):
        if operation == "replace":
            words = (re.findall(r"\s*\S+|\s+", text) for text in (old, new))
            changes += [change for edit in _edits(*words) for change in _changes(*edit)]
        else:
            changes += _changes(operation, old, new)
    return tuple(changes)


def _edits(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (what happens, what was there, what comes instead), piece by piece."""
    for operation, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        yield operation, "".join(old[i:j]), "".join(new[k:m])


def _changes(operation: str, old: str, new: str) -> list[WordChange]:
    if operation == "equal":
        return [WordChange("same", new)]
    return [WordChange(kind, words) for kind, words in (("removed", old), ("added", new)) if words]


def quoted(text: str, most: int = LONGEST_QUOTE) -> str:
    """Return the beginning of a text in one line, in quotation marks."""
    line = " ".join(text[: 8 * most].split())
    return f"“{line if len(line) <= most else line[: most - 1].rstrip() + '…'}”"


def names_of(study: Study) -> dict[int, str]:
    """Return the number of each trial -> its name, each once: with placement and rank where it takes them."""
    by_id = {trial.context.context_id: trial.context for trial in study.trials}
    names = {trial.number: _name(trial, by_id) for trial in study.trials}
    placements = {trial.number: trial.context.placement for trial in study.trials}
    ranks = {trial.number: f"#{rank}" for rank, trial in enumerate(study.trials, start=1)}
    for suffix in (placements, ranks):
        counts = Counter(names.values())
        names = {n: f"{name} · {suffix[n]}" if counts[name] > 1 else name for n, name in names.items()}
    return names


def _name(trial: Trial, by_id: dict[str, Context]) -> str:
    context = trial.context
    if not context.text.strip():
        return "no context"
    if trial.role == "placebo":
        return f"placebo: {(context.template or context.origin).removeprefix('placebo_')}"
    if context.parents:
        parent = by_id.get(context.parents[0])
        return f"{context.operator or 'made'}{f': {_change(parent, context)}' if parent else ''}"
    params = ", ".join(f"{name}={value}" for name, value in context.params if len(str(value)) <= LONGEST_QUOTE)
    if context.template or context.operator:
        return context.origin + (f" ({params})" if params else "")
    return quoted(context.text)


def _change(parent: Context, child: Context) -> str:
    """Return the most telling difference of a child to its parent, in a few words."""
    if parent.text == child.text:
        return f"{parent.placement} → {child.placement}"
    changes = [change for change in word_changes(parent.text, child.text) if change.kind != "same"]
    longest = max(changes, key=lambda change: len(change.words))
    sign = "+" if longest.kind == "added" else "−"
    return f"{sign} {quoted(longest.words)}"
