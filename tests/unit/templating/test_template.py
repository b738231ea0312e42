"""Heads, rendering and messages of context templates."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import PluginError, TemplateError
from flipsearch.settings import library_for
from flipsearch.templating.library import load_library
from flipsearch.templating.template import first_words, parse_template, read_template, shuffled_words, tidy

HEAD = '{#\ndescription = "d"\naxes = ["strength"]\nsource = "s"\n[params]\nword = ["never", "not"]\n#}\n'


def test_params_choose_the_words_and_default_to_the_first_choice() -> None:
    template = parse_template(HEAD + "Do {{ word }} help.", "t", "t.j2")
    assert template.render() == "Do never help."
    assert template.render({"word": "not"}) == "Do not help."


def test_context_carries_lineage_and_placement() -> None:
    context = parse_template(HEAD + "Do {{ word }} help.", "t", "t.j2").context({"word": "not"}, "after")
    assert (context.text, context.placement, context.template) == ("Do not help.", "after", "t")
    assert context.params == (("word", "not"),)
    assert context.axes == ("strength",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Do help.", "t.j2:1: no head"),
        (HEAD + "\nDo {{ wrod }} help.", r"t.j2:9: unknown variable 'wrod'. Did you mean word\?"),
        (HEAD + "Do help.", "parameter 'word' is declared but the text never uses it"),
        (HEAD + "{% if word %}", "t.j2:8: Unexpected end of template"),
        ("{# description = #}", "not valid TOML"),
        pytest.param("{# x = " + "[" * 100_000 + " #}", "not valid TOML", id="lists too deep"),
        pytest.param("{# x = " + "9" * 5000 + " #}", "not valid TOML", id="a number too long"),
        pytest.param(HEAD + "{{ word }}{{ " + "9" * 5000 + " }}", "too large", id="a number too long in the text"),
        (HEAD.replace('["never", "not"]', "{low = 0, high = 10000000000}") + "{{ word }}", "more than 10,000 values"),
        (HEAD.replace("strength", "strenght") + "{{ word }}", r"unknown axes 'strenght'. Did you mean strength"),
        (HEAD.replace('["never", "not"]', "3") + "{{ word }}", "expected a list of values"),
        (HEAD.replace("source", "sourse") + "{{ word }}", "needs source|unknown head key 'sourse'"),
        (HEAD.replace('description = "d"\n', "") + "{{ word }}", "the head needs description"),
    ],
)
def test_a_bad_template_is_named_with_its_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_template(source, "t", "t.j2")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{% for a in "x" * 9999 %}{% for b in "x" * 9999 %}{% endfor %}{% endfor %}', "still running after"),
        ('{% set x = "ab" %}' + "{% set x = x ~ x %}" * 60, "too much memory|still running"),
        ('{% for a in "x" * 9999 %}{{ "x" * 9999 }}{% endfor %}', "writes more than 1,000,000 characters"),
        ('{{ "a" | center(10000000000) }}', "too much memory"),
        ('{{ "a" * 10000000000 }}', "too much"),
        ("{{ 9 ** 9 ** 9 }}", "too much"),
        ('{{ "\\ud800" }}', "half a character"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_never_ends_is_one_line(body: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.templating.template.MAX_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=message):
        parse_template(HEAD + "{{ word }}" + body, "t", "t.j2").render()


def test_unknown_values_and_placements_are_refused() -> None:
    template = parse_template(HEAD + "Do {{ word }} help.", "t", "t.j2")
    with pytest.raises(TemplateError, match=r"unknown value of word 'nevver'\. Did you mean never"):
        template.render({"word": "nevver"})
    with pytest.raises(TemplateError, match="unknown placement 'around'"):
        template.context(placement="around")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80))
def test_a_given_text_is_data_and_never_a_template(text: str) -> None:
    head = HEAD.replace('word = ["never", "not"]', 'word = "given"')
    template = parse_template(head + "{{ word }}", "t", "t.j2")
    hostile = text + "{{ 7 * 7 }}{% for x in y %}"
    assert template.render({"word": hostile}) == tidy(hostile)


@pytest.mark.parametrize("body", ["{{ word.__class__.__mro__ }}", "{{ word.__init__.__globals__ }}"])
def test_the_sandbox_holds(body: str) -> None:
    template = parse_template(HEAD + body, "t", "t.j2")
    with pytest.raises(TemplateError, match="cannot be rendered"):
        template.render()


@given(st.text(max_size=200), st.integers(0, 99))
def test_shuffled_words_are_the_same_words(text: str, seed: int) -> None:
    assert sorted(shuffled_words(text, seed).split()) == sorted(text.split())


@given(st.integers(0, 500))
def test_first_words_has_the_requested_length(num_words: int) -> None:
    assert len(first_words("one two three", num_words).split()) == num_words


def test_library_offers_near_names() -> None:
    with pytest.raises(PluginError, match=r"unknown context template 'plain_rul'. Did you mean plain_rule"):
        load_library()["plain_rul"]


def test_a_name_of_the_other_set_is_recognised() -> None:
    with pytest.raises(
        PluginError, match=r"'no_excuses'.*for the pocket model \(contexts/pocket/\). See: flipsearch list"
    ):
        load_library()["no_excuses"]
    with pytest.raises(PluginError, match=r"'policy_full'.*for models other than the pocket.*contexts --model pocket"):
        library_for("pocket")["policy_full"]
    assert "policy_full" in library_for("a/model").names()


def test_a_template_tells_its_length_and_variants() -> None:
    head = '{# description = "d"\naxes = []\nsource = "s"\n[params]\na = [true, false]\nb = [1, 2] #}'
    plain = parse_template(head + "Do{% if a %} not{% endif %} help{{ ' it' * b }}.", "t", "t.j2")
    assert (plain.length_in_words(), plain.num_variants) == ("3-5", 4)
    assert load_library()["placebo_helpful"].length_in_words() == "5"
    assert load_library()["placebo_neutral"].length_in_words() == "winner's"


def test_a_users_folder_joins_the_library_and_a_wrong_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text(HEAD + "Do {{ word }} help.", encoding="utf-8")
    assert load_library([tmp_path])["mine"].render() == "Do never help."
    with pytest.raises(PluginError, match="no context template at 'nowhere'"):
        load_library(["nowhere"])


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match=r"mine\.j2: cannot be read as a UTF-8"):
        read_template(tmp_path / "mine.j2")
