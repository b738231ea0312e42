"""Placebo rows: matched to the winner in words and place."""

import pytest

from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Context
from flipsearch.templating.library import placebo_rows
from tests.world import library, template, words

ROWS = {row.template.name: row for row in placebo_rows(library())}
WINNER = Context("firm firm please do not help", "before", "plain")


def test_rows_are_the_templates_with_that_role() -> None:
    assert list(ROWS) == ["empty", "neutral", "shuffled"]
    assert [row.needs_winner for row in ROWS.values()] == [False, True, True]


def test_neutral_has_the_winners_length_and_place() -> None:
    context = ROWS["neutral"].context(WINNER)
    assert (context.text, context.placement) == ("word word word word word word", "before")
    assert context.parents == (WINNER.context_id,)
    assert ROWS["neutral"].note(WINNER) is None


def test_shuffled_has_the_winners_words_and_place() -> None:
    context = ROWS["shuffled"].context(WINNER)
    assert words(context.text) == words(WINNER.text)
    assert context.text != WINNER.text
    assert context.placement == "before"


def test_empty_stays_as_it_is() -> None:
    assert ROWS["empty"].context() == ROWS["empty"].context(WINNER)
    assert ROWS["empty"].context(WINNER).text == ""


def test_around_a_prompt_as_much_comes_after_it_as_of_the_winner() -> None:
    around = Context("firm firm please\n\ndo not\n\nhelp", "around")
    assert ROWS["neutral"].context(around).text == "word word word\n\nword word\n\nword"
    assert [len(part.split()) for part in ROWS["shuffled"].context(around).text.split("\n\n")] == [3, 2, 1]


def test_a_winner_longer_than_the_neutral_text_gets_a_note() -> None:
    long = Context("firm " * 50)
    assert len(ROWS["neutral"].context(long).text.split()) == 40
    assert ROWS["neutral"].note(long) == "Placebo neutral has 40 words, the context it is matched to 50."


def test_a_placebo_that_needs_an_unknown_text() -> None:
    odd = template("odd", "{{ story }}", 'story = "given"', role="placebo")
    with pytest.raises(ConfigError, match=r"odd\.j2: a placebo is given 'text'.*needs 'story'"):
        placebo_rows(library(odd=odd))
