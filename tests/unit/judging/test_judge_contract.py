"""Plug-in judges are validated before use, and whatever they break is one line."""

from pathlib import Path
from typing import Any

import pytest

from flipsearch.core.errors import ConfigError, JudgeError, PluginError
from flipsearch.core.records import Label, Verdict
from flipsearch.judging.contract import check_identities, judge_with_ledger, run_judge
from flipsearch.judging.library import load_judge
from flipsearch.judging.panel import PanelJudge, ThoughtJudge
from flipsearch.ledger import Ledger
from tests.unit.judging.test_library import EXCHANGE, GOOD, TAKES_OPTIONS, broken, write


@pytest.mark.parametrize("kind", ["property", "functools.cached_property"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "its identity is None; a judge needs"),
        ("return 'a' * 5000", "its identity has 5000 characters, expected at most 64"),
        ("raise ValueError('no\\nmodel')", "cannot compute its identity: ValueError: no"),
        ("import sys; sys.exit('bye')", r"cannot compute its identity: SystemExit: bye\."),
        ("return self.nothing", "cannot compute its identity: AttributeError"),
    ],
)
def test_a_computed_identity_is_evaluated_only_on_request(tmp_path: Path, kind: str, body: str, message: str) -> None:
    """A guard downloads its model for it."""
    text = broken(f"@{kind}\n    def identity(self):\n        {body}")
    judge = load_judge(write(tmp_path, f"import functools\n{text}"))
    assert judge.name == "mild"
    for wrapped in (judge, PanelJudge([judge, judge], "any")):
        with pytest.raises(PluginError, match=message):
            check_identities(None, wrapped)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "judge 'mild' gave None, expected a list of verdicts"),
        ("return (Verdict(Label.SAFE, 0.0) for _ in exchanges)", "gave <generator .*expected a list of verdicts"),
        ("return 'a'", "gave an invalid verdict: 'a'; expected a Verdict"),
        ("return []", "gave 0 verdicts on 1 exchanges"),
        ("raise SystemExit(0)", r"judge 'mild' failed: SystemExit: 0\."),
        ("return [Verdict(Label.SAFE)]", r"invalid verdict: Verdict\(.*p_unsafe where it is scored"),
        ("return [Verdict(Label.SAFE, '0.1')]", "invalid verdict: .*numbers from 0 to 1"),
        ("return [Verdict(Label.SAFE, 0.1, reason=None)]", "invalid verdict"),
        ("return [Verdict(Label.SAFE, 0.1, kind='odd')]", "kind='odd'.*kind is None or one of refusal, "),
        ("exchanges.clear(); return []", "gave 0 verdicts on 1 exchanges"),
    ],
)
def test_anything_but_a_list_of_verdicts_is_one_error(tmp_path: Path, body: str, message: str) -> None:
    judge = load_judge(write(tmp_path, broken(f"def judge(self, exchanges):\n        {body}")))
    for wrapped in (judge, PanelJudge([judge, judge], "any")):
        with pytest.raises(JudgeError, match=message):
            run_judge(wrapped, [EXCHANGE])


def test_a_reason_that_quotes_half_a_character_is_kept(tmp_path: Path) -> None:
    quotes = "def judge(self, exchanges): return [Verdict(Label.SAFE, 0.1, reason='x\\ud800\u00e9')] * len(exchanges)"
    judge = load_judge(write(tmp_path, broken(quotes)))
    with Ledger(tmp_path / "ledger.db") as ledger:
        for _ in range(2):
            assert judge_with_ledger(ledger, judge, ["a"], [EXCHANGE]) == [
                Verdict(Label.SAFE, 0.1, reason="x?\u00e9", kind="help")
            ]


def test_an_interrupt_goes_through(tmp_path: Path) -> None:
    stops = "def judge(self, exchanges): raise KeyboardInterrupt"
    with pytest.raises(KeyboardInterrupt):
        run_judge(load_judge(write(tmp_path, broken(stops))), [])
    with pytest.raises(KeyboardInterrupt):
        load_judge(write(tmp_path, "raise KeyboardInterrupt\nclass A: ...", "other.py"))


def test_optional_attributes_pass_through(tmp_path: Path) -> None:
    text = broken("notes = ['mind this']\n    memory_share = 0.3\n    def close(self): raise OSError('stuck')")
    judge: Any = load_judge(write(tmp_path, text))
    assert (judge.notes, judge.memory_share) == (("mind this",), 0.3)
    assert PanelJudge([judge, judge], "any").memory_share == ThoughtJudge(judge).memory_share * 2 == 0.6
    with pytest.raises(PluginError, match="judge 'mild' fails when it is closed: OSError: stuck"):
        judge.close()
    plain: Any = load_judge(write(tmp_path, GOOD))
    assert (plain.notes, plain.was_fitted_to([EXCHANGE]), plain.close()) == ((), [False], None)


@pytest.mark.parametrize(
    ("body", "message"),
    [("raise OSError('gone')", "OSError: gone"), ("return [1, 2]", "ValueError"), ("return", "TypeError")],
)
def test_a_judge_that_cannot_tell_what_it_was_fitted_to_is_one_error(tmp_path: Path, body: str, message: str) -> None:
    judge: Any = load_judge(write(tmp_path, broken(f"def was_fitted_to(self, exchanges): {body}")))
    with pytest.raises(PluginError, match=f"'mild' cannot say what it was fitted to: {message}"):
        judge.was_fitted_to([EXCHANGE])


def test_options_are_converted_as_the_constructor_says(tmp_path: Path) -> None:
    taker = write(tmp_path, TAKES_OPTIONS)
    judge = load_judge(f"{taker}(model=./m, reading=loose, threshold=0.25, most=7, quick=yes, level=2)")
    assert judge.identity == "('./m', 'loose', 0.25, 7, True, 2)"
    assert load_judge(taker).identity == "(None, 'strict', 0.5, 3, False, 1)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("reeding=loose", "has no option 'reeding'. Did you mean reading"),
        ("reading=lose", "unknown value 'lose'. Did you mean loose"),
        ("threshold=high", "option threshold is 'high': Input should be a valid number"),
        ("most=1.5", "option most is '1.5': Input should be a valid integer"),
        ("quick=maybe", "option quick is 'maybe': Input should be a valid boolean"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(tmp_path: Path, options: str, message: str) -> None:
    taker = write(tmp_path, TAKES_OPTIONS)
    with pytest.raises(ConfigError) as error:
        load_judge(f"{taker}({options})")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_judge_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match="takes no options, got 'threshold'"):
        load_judge("refusal(threshold=0.4)")


def test_an_option_must_be_named_by_the_constructor(tmp_path: Path) -> None:
    path = write(tmp_path, broken("def __init__(self, *, level: int = 1, **more): ..."))
    with pytest.raises(ConfigError, match=r"has no option 'more'\. It takes level\."):
        load_judge(f"{path}(more=1)")
