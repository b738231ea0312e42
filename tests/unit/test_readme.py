"""What the README and the documentation say of the house is true."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flipsearch.commands.main import COMMANDS, GROUPS, make_app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "docs/README.md",
    "docs/concepts.md",
    "docs/training.md",
    "docs/evidence.md",
    "docs/responsible-use.md",
]
PAGES += ["contexts/README.md", "judges/README.md"]


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_file_tree_names_what_is_there_and_leaves_nothing_out() -> None:
    tree = README.split("    flipsearch/\n")[1].split("\n\n")[0]
    package, top = tree.split("    contexts/")[0], "contexts/" + tree.split("    contexts/")[1]
    named = {name.rstrip("/") for line in package.splitlines() for name in line[6:42].split()}
    there = {p.name for p in (ROOT / "flipsearch").iterdir() if p.suffix in (".py", "") and not p.name.startswith("_")}
    assert named == there
    for name in re.findall(r"\b[a-z]+/(?= )", top):
        assert (ROOT / name).is_dir()


def test_every_make_target_and_command_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_the_options_that_a_page_gives_it(page: str) -> None:
    root: Any = get_command(make_app(list(COMMANDS)))
    known = {
        **root.commands,
        **{f"{group} {name}": root.commands[group].commands[name] for group in GROUPS for name in GROUPS[group][1]},
    }
    for line in re.findall(r"^ {4}flipsearch (.*)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
        typed = line.partition(" #")[0]
        words = typed.replace("|", " ").split()
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in known or name in GROUPS)
        options = {name for part in getattr(known[name], "params", ()) for name in (*part.opts, *part.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", typed)) <= options | {"--help"}, line


def test_ci_runs_what_the_readme_tells_a_newcomer_to_run() -> None:
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert steps == ["make test", "make test-all"]
    assert all(step in README for step in steps)


def test_pictures_and_files_that_it_shows_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for path in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
            assert (ROOT / page).parent.joinpath(path).exists(), (page, path)
