"""Judges are found by name and by path; a bad judge file is one line."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from flipsearch.core.errors import PluginError
from flipsearch.core.records import Exchange, Label, Prompt
from flipsearch.judging import library
from flipsearch.judging.library import list_judges, load_judge

GOOD = '''
from dataclasses import dataclass
from flipsearch.core.records import Label, Verdict

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
EXCHANGE = Exchange(Prompt("a", "benign"), "b")


def broken(lines: str) -> str:
    """Return a judge file with lines of its class that break it."""
    return f"{GOOD}\n    {lines}\n"


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
        ("class A:\n    name = 'a'", "its identity is None; a judge needs name and identity"),
        ("class A:\n    name = 'a'\n    identity = 3\n    def judge(self, e): ...", "its identity is 3; a judge needs"),
        ("class A:\n    name = identity = 'a'", r"its judge is None; .* and judge\(exchanges\)"),
        ("class _Stop(BaseException): ...\nraise _Stop\nclass A: ...", r"fails when loaded: _Stop\."),
        (
            "class _Mute(Exception):\n    def __str__(self): raise SystemExit\nraise _Mute\nclass A: ...",
            r"fails when loaded: _Mute\.",
        ),
        ("import sys\nsys.exit()\nclass A: ...", r"mild.py' fails when loaded: SystemExit\."),
        ("class A: ...\ndel A", "fails when loaded: AttributeError"),
        ("class A:\n    def __init__(self): raise SystemExit(0)", r"cannot be built: SystemExit: 0\."),
        (broken("name = ' '"), "its name is ' '; a judge needs"),
        (broken(r"identity = 'a\nb'"), r"its identity is 'a\\nb'; a judge needs"),
        (broken("name = 'a' * 101"), "its name has 101 characters, expected at most 100; shorten it"),
        (broken("identity = 'a' * 65"), "its identity has 65 characters, expected at most 64; shorten it"),
        (broken("@property\n    def name(self): return self.nothing"), "cannot be built: AttributeError"),
        (broken("notes = 'one text'"), "notes is 'one text', expected several texts"),
        (broken("notes = (1, 2)"), r"notes is \(1, 2\), expected several texts"),
        (broken("@property\n    def notes(self): return self.nothing"), "cannot be built: AttributeError"),
        (broken("@property\n    def close(self): exit(3)"), "cannot be built: SystemExit: 3"),
        (broken("was_fitted_to = 'xstest'"), "was_fitted_to is 'xstest', expected a method"),
        (broken("close = True"), "close is True, expected a method"),
        (broken("memory_share = 2"), "memory_share is 2, expected a number from 0 to 1"),
    ],
)
def test_a_bad_file_is_one_line_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_judge(write(tmp_path, text))


def test_a_broken_file_does_not_break_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, "def f(:", "broken.py")
    write(tmp_path, "raise RuntimeError\nclass A:\n    'Fails when run.'", "fails.py")
    odd = "class A:\n    'Odd needs.'\n    needs_model = 'no id!'\n    needs_packages = ('.x', 'no_such.part')"
    write(tmp_path, f"{odd}\n    needs_option = None", "odd.py")
    monkeypatch.setattr(library, "content_folder", lambda name: tmp_path)
    judges = list_judges()
    assert judges["mild"] == "Finds all safe."
    assert "is not Python" in judges["broken"]
    assert judges["fails"] == "Fails when run."
    assert judges["odd"] == (
        "Odd needs. [not installed: pip install .x no_such.part; needs no id!: not downloaded yet, or model=PATH]"
    )


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


TAKES_OPTIONS = '''
from typing import Literal

from flipsearch.core.records import Label, Verdict


class Optional:
    """Takes options."""

    name = "optional"
    needs_model: str = "org/name-of-a-model"
    needs_packages = ("a_package_that_nobody_has",)

    def __init__(self, *, model: str | None = None, reading: Literal["strict", "loose"] = "strict",
                 threshold: float = 0.5, most: int = 3, quick: bool = False,
                 level: Literal[1, 2] = 1) -> None:
        self.given = (model, reading, threshold, most, quick, level)
        self.identity = str(self.given)

    def judge(self, exchanges):
        return [Verdict(Label.SAFE, 0.0)] * len(exchanges)
'''


@pytest.fixture
def taker(tmp_path: Path) -> Path:
    file = tmp_path / "taker.py"
    file.write_text(TAKES_OPTIONS, encoding="utf-8")
    return file


def test_a_folder_holds_a_judge_with_what_it_needs(taker: Path) -> None:
    folder = taker.parent / "mine"
    folder.mkdir()
    with pytest.raises(PluginError, match=r"must hold one judge file \(.py\) or mine.py, got none"):
        load_judge(str(folder) + "/")
    taker.rename(folder / "anything.py")
    (folder / "_helper.py").write_text("", encoding="utf-8")
    assert load_judge(str(folder)).name == "optional"
    (folder / "mine.py").write_text(TAKES_OPTIONS.replace('"optional"', '"mine"'), encoding="utf-8")
    assert load_judge(str(folder)).name == "mine"


def test_listing_shows_what_a_judge_needs_and_whether_it_is_here(taker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.judging.library.content_folder", lambda _: taker.parent)
    assert list_judges()["taker"] == (
        "Takes options. [not installed: pip install a_package_that_nobody_has; "
        "needs org/name-of-a-model: not downloaded yet, or model=PATH]"
    )
