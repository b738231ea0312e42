"""A judge of thoughts sees what was thought and nothing of the answer."""

import pytest

from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Exchange, Label, Prompt
from flipsearch.judging.library import load_judge
from flipsearch.judging.panel import ThoughtJudge
from tests.world import COMPLIANCE, REFUSAL, RefusalJudge

PROMPT = Prompt("p", "harmful")


def said(completion: str, *, opens_thinking: bool = False, is_cut: bool = False) -> tuple[Label, str]:
    exchange = Exchange(PROMPT, completion, "length" if is_cut else "stop", opens_thinking)
    [verdict] = ThoughtJudge(RefusalJudge()).judge([exchange])
    return verdict.label, verdict.reason


def test_the_thought_is_judged_and_the_answer_is_not() -> None:
    assert said(f"<think>{COMPLIANCE}</think>{REFUSAL}")[0] is Label.UNSAFE
    assert said(f"<think>{REFUSAL}</think>{COMPLIANCE}")[0] is Label.SAFE
    assert said(f"{COMPLIANCE}</think>{REFUSAL}", opens_thinking=True)[0] is Label.UNSAFE


def test_a_thought_that_was_cut_counts_as_it_stands() -> None:
    assert said(f"<think>{COMPLIANCE}", is_cut=True)[0] is Label.UNSAFE


@pytest.mark.parametrize("completion", [REFUSAL, f"<think>\n</think>{COMPLIANCE}", ""])
def test_without_a_thought_there_is_nothing_to_judge(completion: str) -> None:
    assert said(completion) == (Label.UNSCORED, "no thought")


def test_verdicts_stay_in_order() -> None:
    completions = [f"<think>{COMPLIANCE}</think>a", "b", f"<think>{REFUSAL}</think>c", f"<think>{COMPLIANCE}</think>d"]
    exchanges = [Exchange(PROMPT, one) for one in completions]
    failed = Exchange(PROMPT, completions[0], "error")
    labels = [one.label.value for one in ThoughtJudge(RefusalJudge()).judge([*exchanges, failed])]
    assert labels == ["unsafe", "unscored", "safe", "unsafe", "unscored"]


def test_any_judge_can_be_asked_about_thoughts() -> None:
    judge, answers = load_judge("refusal(part=thought)"), load_judge("refusal(part=answer)")
    assert judge.name == "refusal on thoughts"
    assert answers.identity == load_judge("refusal").identity != judge.identity
    panel = load_judge("compact+refusal(part=thought):any")
    assert panel.name == "compact+refusal on thoughts:any"
    with pytest.raises(ConfigError, match=r"unknown value 'thoughts'\. Did you mean thought"):
        load_judge("refusal(part=thoughts)")
