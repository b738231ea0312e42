"""Judges are found by name and by path; what is wrong with a judge file is said in one line."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from flipsearch.errors import PluginError
from flipsearch.judging import library
from flipsearch.judging.library import list_judges, load_judge
from flipsearch.records import Exchange, Label, Prompt

GOOD = '''
from dataclasses import dataclass
from flipsearch.records import Label, Verdict

@dataclass(frozen=True)
class _Helper:
    label: Label = Label.SAFE

class MildJudge:
    """Finds all safe.

    More words.
    """
    name = "mild"
    identity = "mild 1"

    def judge(self, exchanges):
        return [Verdict(_Helper().label) for _ in exchanges]
'''


def write(folder: Path, text: str, name: str = "mild.py") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_refusal_judge_is_listed_with_its_first_line() -> None:
    assert "rules" in list_judges()["refusal"].lower()
    assert "\n" not in list_judges()["refusal"]


def test_a_judge_loads_by_name() -> None:
    assert load_judge("refusal").name == "refusal"


def test_a_judge_loads_from_a_path(tmp_path: Path) -> None:
    judge = load_judge(write(tmp_path, GOOD))
    assert judge.name == "mild"
    assert judge.judge([Exchange(Prompt("a", "benign"), "b")])[0].label is Label.SAFE


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown judge 'refusl'\. Did you mean refusal"):
        load_judge("refusl")


def test_a_missing_file_offers_near_ones(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(PluginError, match=r"no judge file '.*mildd.py'. Did you mean mild.py"):
        load_judge(str(tmp_path / "mildd.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", r"mild.py:1 is not Python"),
        ("x = 1", "exactly one public class, got none"),
        ("class A: ...\nclass B: ...", "exactly one public class, got A, B"),
        ("raise OSError('no disk')\nclass A: ...", "fails when loaded: OSError: no disk"),
        ("class A:\n    def __init__(self, model): ...", "cannot be built: TypeError"),
        ("class A:\n    name = 'a'", "lacks identity, judge"),
        ("class A:\n    name = 'a'\n    identity = 3\n    def judge(self, e): ...", "lacks identity"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_judge(write(tmp_path, text))


def test_a_broken_file_does_not_break_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, "def f(:", "broken.py")
    write(tmp_path, "raise RuntimeError\nclass A:\n    'Fails when run.'", "fails.py")
    monkeypatch.setattr(library, "content_folder", lambda name: tmp_path)
    judges = list_judges()
    assert judges["mild"] == "Finds all safe."
    assert "is not Python" in judges["broken"]
    assert judges["fails"] == "Fails when run."


def test_judges_of_installed_packages_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, GOOD, "installed_judge.py")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        EntryPoint("outside", "installed_judge:MildJudge", library.ENTRY_POINTS),
        EntryPoint("gone", "no_such_module:Judge", library.ENTRY_POINTS),
    ]
    monkeypatch.setattr(library, "entry_points", lambda group: entries if group == library.ENTRY_POINTS else [])
    assert list_judges()["outside"] == "from installed_judge:MildJudge"
    assert load_judge("outside").name == "mild"
    with pytest.raises(PluginError, match=r"judge 'gone' .* fails when loaded"):
        load_judge("gone")
