"""Operators of installed packages: a search uses them, and a broken one is one line before any model is loaded."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.errors import PluginError
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from flipsearch.searching.setup import make_operators
from tests.world import GREEDY, Model, RefusalJudge, library, prompt_set

Install = Callable[[str, str], None]
SOURCE = """
from dataclasses import replace


class Shout:
    name = "shout"
    num_parents = 1

    def make(self, parents, rng):
        parent = parents[0].context
        text = f"{parent.text} Hear me {rng.randint(1, 100)} times!"
        return replace(parent, text=text, template="", params=(), operator="shout", parents=(parent.context_id,))


class NoParents(Shout):
    num_parents = 0


def fails():
    raise RuntimeError("no voice")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with the module `shouting` and one more entry point, for the time of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shouting", raising=False)
    (tmp_path / "shouting.py").write_text(SOURCE, encoding="utf-8")
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n", encoding="utf-8")

    def add(name: str, value: str) -> None:
        path = info / "entry_points.txt"
        lines = path.read_text(encoding="utf-8") if path.exists() else "[flipsearch.operators]\n"
        path.write_text(f"{lines}{name} = {value}\n", encoding="utf-8")

    return add


def test_a_search_uses_an_installed_operator(install: Install) -> None:
    install("shout", "shouting:Shout")
    config = SearchConfig(num_contexts=96, cohort_size=6, first_rung=8, seed=1)
    with Ledger("sqlite://") as ledger:
        setup = prepare_search(config, library(), prompt_set())
        study = run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY))
    children = [trial.context for trial in study.trials if trial.context.operator == "shout"]
    assert children
    assert all(child.text.endswith(" times!") for child in children)
    (row,) = [row for row in study.operators if row.operator == "shout"]
    assert row.num_raced == len(children)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shout", "shouting:Missing", r"^operator 'shout' \(shouting:Missing\) fails when loaded: AttributeError"),
        ("shout", "missing_module:Shout", "fails when loaded: ModuleNotFoundError"),
        ("shout", "shouting:fails", "fails when loaded: RuntimeError"),
        ("shout", "shouting:replace", "fails when loaded: TypeError"),
        ("whisper", "shouting:Shout", "has the name 'shout', expected that of its entry point"),
        ("shout", "shouting:NoParents", "is no operator: expected num_parents of 1 or more and a method make"),
        ("drop", "shouting:Shout", "another operator has this name; rename it"),
        ("rewrite", "shouting:Shout", "another operator has this name; rename it"),
    ],
)
def test_a_broken_entry_point_is_one_line(install: Install, name: str, value: str, message: str) -> None:
    install(name, value)
    with pytest.raises(PluginError, match=message) as caught:
        make_operators([])
    assert "\n" not in str(caught.value)
