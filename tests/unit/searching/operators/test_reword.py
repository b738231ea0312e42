"""Reword: only phrases of the table change, into others of their group."""

import random
import re
import tomllib
from itertools import product

from flipsearch.core.measurements import Rate
from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.searching.operators.edits import PHRASES, Reword
from flipsearch.templating.library import POCKET_CONTEXTS, load_library

GROUPS = [["do not help", "don't help"], ["harm", "damage", "hurt"], ["do not", "never"], [r"a\1b", "c"]]


def children(text: str, groups: list[list[str]] | None = None) -> set[str]:
    operator = Reword(groups)
    made = [operator.make([Parent(Context(text), Rate(0, 0, 0, 1))], random.Random(seed)) for seed in range(60)]
    return {child.text for child in made if child is not None}


def test_groups_are_symmetric() -> None:
    assert children("No harm", GROUPS) == {"No damage", "No hurt"}
    assert children("No hurt", GROUPS) == {"No damage", "No harm"}


def test_the_first_letter_keeps_its_case() -> None:
    assert children("Harm is bad, HARM too.", [["harm", "damage"]]) == {
        "Damage is bad, HARM too.",
        "Harm is bad, Damage too.",
        "Damage is bad, Damage too.",
    }


def test_the_longest_phrase_counts_and_words_stay_whole() -> None:
    assert children("do not help", GROUPS) == {"don't help"}
    assert children("harmless charm", GROUPS) == set()


def test_phrases_are_plain_text() -> None:
    assert children(r"x a\1b", GROUPS) == {"x c"}
    assert children("x c", GROUPS) == {r"x a\1b"}


def test_without_a_phrase_or_a_table_it_does_not_apply() -> None:
    assert children("Be good.", GROUPS) == set()
    assert children("Be good.", []) == set()


def test_most_library_contexts_can_be_reworded() -> None:
    templates = load_library(shipped=POCKET_CONTEXTS).select()
    able = [template.name for template in templates if children(template.render())]
    assert len(able) >= 0.8 * len(templates)


def test_the_table_fits_the_grammar() -> None:
    """Phrases of a group take the same articles, and none hides a part of another that would be changed with it."""
    groups = tomllib.loads(PHRASES.read_text(encoding="utf-8"))["groups"]
    phrases = [phrase for group in groups for phrase in group]
    assert len(set(phrases)) == len(phrases)
    for group in groups:
        assert len(group) > 1
        vowels = {phrase[0] in "aeiou" for phrase in group if len(phrase.split()) == 1}
        assert len(vowels) <= 1, group
        assert all(phrase == phrase.lower() == phrase.strip() for phrase in group)
        for phrase, synonym in product(group, group):
            assert phrase == synonym or not re.search(rf"\b{re.escape(phrase)}\b", synonym), (phrase, synonym)
