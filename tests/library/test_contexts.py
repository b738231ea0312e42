"""Every file in contexts/ renders with every combination of its parameters and says what it is."""

from itertools import islice, product
from pathlib import Path

import pytest

from flipsearch.core.records import content_id
from flipsearch.templating.library import load_library
from flipsearch.templating.template import AXES, Template, parse_template

LIBRARY = load_library()
EVERY = [LIBRARY[name] for name in LIBRARY.names()]


def renderings(template: Template, limit: int = 400) -> list[str]:
    given = {p.name: "one two three four" for p in template.params if p.given}
    free = [p for p in template.params if not p.given]
    values = product(*(p.choices for p in free))
    return [template.render(given | dict(zip([p.name for p in free], v, strict=True))) for v in islice(values, limit)]


@pytest.mark.parametrize("template", EVERY, ids=lambda t: t.name)
def test_it_renders_with_every_parameter(template: Template) -> None:
    texts = renderings(template)
    assert all(text or template.name == "placebo_empty" for text in texts)
    assert not any("{" in text or "  " in text or "\n\n\n" in text for text in texts)


@pytest.mark.parametrize("template", [t for t in EVERY if t.role == "context"], ids=lambda t: t.name)
def test_every_parameter_changes_the_text(template: Template) -> None:
    for param in template.params:
        texts = {template.render({param.name: value}) for value in param.choices}
        assert len(texts) == len(param.choices), f"{template.name}: {param.name} does not change the text"


def test_the_library_is_as_large_as_promised() -> None:
    assert len(LIBRARY.names("context")) >= 12
    assert LIBRARY.names("placebo") == ["placebo_empty", "placebo_neutral", "placebo_shuffled"]
    assert len(LIBRARY.names("benign")) == 2


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


def test_neutral_placebo_has_the_chosen_length() -> None:
    for num_words in (1, 17, 300):
        assert len(LIBRARY["placebo_neutral"].render({"num_words": num_words}).split()) == num_words
