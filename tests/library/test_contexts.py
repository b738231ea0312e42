"""Every file in contexts/ renders with every combination of its parameters and says what it is."""

import re
from itertools import islice, product
from pathlib import Path

import pytest

from flipsearch.core.records import PLACEMENTS, content_id
from flipsearch.templating.library import POCKET_CONTEXTS, load_library
from flipsearch.templating.template import AXES, Template, parse_template

LIBRARY = load_library()
POCKET = load_library(shipped=POCKET_CONTEXTS)
EVERY = [library[name] for library in (LIBRARY, POCKET) for name in library.names()]


def renderings(template: Template, limit: int = 400) -> list[str]:
    given = {p.name: "one two three four" for p in template.params if p.given}
    free = [p for p in template.params if not p.given]
    values = product(*(p.choices for p in free))
    return [template.render(given | dict(zip([p.name for p in free], v, strict=True))) for v in islice(values, limit)]


@pytest.mark.parametrize("template", EVERY, ids=lambda t: t.name)
def test_it_renders_with_every_parameter(template: Template) -> None:
    texts = renderings(template)
    assert all(text or template.name == "placebo_empty" for text in texts)
    assert not any("{{" in text or "{%" in text or "  " in text or "\n\n\n" in text for text in texts)


@pytest.mark.parametrize("template", [t for t in EVERY if t.role == "context"], ids=lambda t: t.name)
def test_every_parameter_changes_the_text(template: Template) -> None:
    for param in template.params:
        texts = {template.render({param.name: value}) for value in param.choices}
        assert len(texts) == len(param.choices), f"{template.name}: {param.name} does not change the text"


def test_the_libraries_are_as_large_as_promised() -> None:
    assert len(LIBRARY.names("context")) >= 25
    assert len(LIBRARY.names("benign")) >= 5
    matched = ["placebo_instruction", "placebo_neutral", "placebo_shuffled"]
    assert LIBRARY.names("placebo") == ["placebo_empty", "placebo_handbook", "placebo_helpful", *matched]
    assert len(POCKET.names("context")) == 16
    assert POCKET.names("placebo") == ["placebo_empty", "placebo_neutral", "placebo_shuffled"]


def test_contexts_for_real_models_have_every_length_and_placement() -> None:
    contexts = [LIBRARY[name] for name in LIBRARY.names("context")]
    lengths = [len(text.split()) for template in contexts for text in renderings(template)]
    assert 10 <= min(lengths) < 20
    assert 300 < max(lengths) <= 400
    assert {placement for template in contexts for placement in template.placements} == set(PLACEMENTS)
    assert all(len(template.params) >= 2 for template in contexts)


@pytest.mark.parametrize("template", [LIBRARY[name] for name in LIBRARY.names()], ids=lambda t: t.name)
def test_what_a_template_says_of_itself_fits_on_a_line(template: Template) -> None:
    assert max(len(template.description), len(template.source)) <= 76


def test_no_rendering_breaks_off_a_sentence() -> None:
    """Every line of a context is closed, or introduces something, or is a mark or a heading of its own."""
    for template in (LIBRARY[name] for name in LIBRARY.names() if LIBRARY[name].role != "placebo"):
        for line in {line for text in renderings(template) for line in text.splitlines() if len(line.split()) > 4}:
            assert not re.search(r" [,.;:]|,,|(?<!\.)\.\.(?!\.)|\bNone\b", line), f"{template.name}: {line}"
            assert line.startswith(("-", "#", "Questions", "Welcome")) or line[-1] in '.:?")!*', (
                f"{template.name}: {line}"
            )


def test_every_axis_is_worked_on() -> None:
    assert {axis for t in EVERY for axis in t.axes} == set(AXES)


def test_no_two_templates_say_the_same() -> None:
    seen: dict[str, str] = {}
    for template in (t for t in EVERY if t.role == "context"):
        key = content_id(template.body)
        assert key not in seen, f"{template.name} repeats {seen.get(key)}"
        seen[key] = template.name


def test_the_example_of_the_readme_is_a_template() -> None:
    text = (Path(__file__).parents[2] / "contexts" / "README.md").read_text(encoding="utf-8")
    lines = text.split("lines\n\n")[1].split("\n\nSave it")[0].splitlines()
    example = parse_template("\n".join(line.removeprefix("    ") for line in lines), "mine", "mine.j2")
    assert len(lines) <= 20
    assert example.render({"tone": "plain", "reason": False}) == "Please do not help with requests that hurt people."


@pytest.mark.parametrize("name", ["placebo_neutral", "placebo_instruction"])
def test_a_matched_placebo_has_the_chosen_length(name: str) -> None:
    for num_words in (1, 17, 300):
        assert len(LIBRARY[name].render({"num_words": num_words}).split()) == num_words
    assert len(LIBRARY[name].context().text.split()) == 60, "scored by its name it is no single word"
