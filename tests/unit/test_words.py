"""The words of the project are those of its field: the private ones that once stood for them do not come back."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from flipsearch.config import EvalConfig, ScoreConfig, SearchConfig, TrainConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flipsearch"
FILES = sorted(PACKAGE.rglob("*.py"))
OTHERS = sorted(path for folder in ("benchmarks", "judges", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))
GONE = {
    *("told", "telling", "asked", "bench", "benches", "desk", "desks", "glimpse", "glimpses", "hygiene", "rival"),
    *("rivals", "opinion", "opinions", "dispute", "disputes", "relief", "organism", "findings", "forecast", "readings"),
    *("opening", "openings", "trying", "holding", "whoever", "slope", "slopes", "roomy"),
}
IN_NAMES_OF_OTHERS = {"bench", "opening"}
"""OR-Bench and MT-Bench are data sets, and tags open."""
VAGUE = {"one", "found", "told", "it", "some"}
"""As names of variables and parameters: say what the thing is."""


def names_of(tree: ast.AST) -> set[str]:
    """Names that a module defines: classes, functions, parameters, variables and attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_names_are_the_fields_words(path: Path) -> None:
    names = names_of(ast.parse(path.read_text(encoding="utf-8")))
    words = {word.lower() for name in names for word in re.findall(r"[A-Z]?[a-z]+", name)}
    assert not words & GONE
    assert not names & VAGUE


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_outside_of_the_package_are_the_fields_words_too(path: Path) -> None:
    names = names_of(ast.parse(path.read_text(encoding="utf-8")))
    words = {word for name in names for word in re.findall(r"[A-Z]?[a-z]+", name)}
    assert not words & GONE - IN_NAMES_OF_OTHERS
    assert not names & VAGUE


def test_help_texts_are_in_the_fields_words() -> None:
    for kind in (SearchConfig, ScoreConfig, TrainConfig, EvalConfig):
        for name, field in kind.model_fields.items():
            assert not set(re.findall(r"[a-z]+", (field.description or "").lower())) & GONE, name


def test_no_class_name_means_two_things() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []
