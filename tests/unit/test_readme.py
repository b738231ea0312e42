"""What the README says of the house is true."""

import re
from pathlib import Path

from flipsearch.commands.main import COMMANDS, GROUPS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    for command in set(re.findall(r"^    flipsearch ([a-z]+)", README, re.MULTILINE)):
        assert command in COMMANDS | GROUPS, command


def test_ci_runs_what_the_readme_tells_a_newcomer_to_run() -> None:
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert steps == ["make test", "make test-all"]
    assert all(step in README for step in steps)


def test_pictures_and_files_that_it_shows_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
