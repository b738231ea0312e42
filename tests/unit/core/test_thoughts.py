"""Thought and answer are separated, and nothing that the user would see is hidden from the judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.thoughts import split_answer

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("completion", "opens_thinking", "thought", "answer"),
    [
        ("Boil it.", False, "", "Boil it."),
        ("", False, "", ""),
        ("<think>\nHm.\n</think>\n\nBoil it.", False, "Hm.", "Boil it."),
        ("Hm.\n</think>\n\nBoil it.", True, "Hm.", "Boil it."),
        ("<think>\n\n</think>\n\nBoil it.", False, "", "Boil it."),
        ("<think>Hm.</think>", False, "Hm.", ""),
        ("<think>Hm.", False, "Hm.", None),
        ("Hm.", True, "Hm.", None),
        ("", True, "", None),
        ("Hm.</think>Boil it.", False, "Hm.", "Boil it."),
        ("<THINK>Hm.</Think>Boil it.", False, "Hm.", "Boil it."),
        ("<thinking>Hm.</thinking>Boil it.", False, "Hm.", "Boil it."),
        ("[THINK]Hm.[/THINK]Boil it.", False, "Hm.", "Boil it."),
        ("◁think▷Hm.◁/think▷Boil it.", False, "Hm.", "Boil it."),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>Boil it.", False, "Hm.", "Boil it."),
        ("<think>a<think>b</think>c</think>Boil it.", False, "a\nb\nc", "Boil it."),
        ("<think>a</think>One.<think>b</think> Two.", False, "a\nb", "One. Two."),
        ("<think>a</think>One.<think>b", False, "a\nb", None),
        ("<seed:think>Hm.</seed:think>Boil it.", False, "Hm.", "Boil it."),
        ("<|START_THINKING|>Hm.<|END_THINKING|>Boil it.", False, "Hm.", "Boil it."),
        ("<think_start>Hm.<think_end>Boil it.", False, "Hm.", "Boil it."),
        ("<|thinking|>Hm.<|/thinking|>Boil it.", False, "Hm.", "Boil it."),
        ("<longcat_think>Hm.</longcat_think>Boil it.", False, "Hm.", "Boil it."),
        ("<unused94>thought\nHm.<unused95>Boil it.", False, "Hm.", "Boil it."),
        ("<|inner_prefix|>Hm.<|inner_suffix|>Boil it.", False, "Hm.", "Boil it."),
        ("<|channel>thought\nHm.<channel|>Boil it.", False, "Hm.", "Boil it."),
        (f"{ANALYSIS}Hm.{FINAL}Boil it.<|return|>", False, "Hm.", "Boil it."),
        (f"Hm.{FINAL}Boil it.", True, "Hm.", "Boil it."),
        (f"{ANALYSIS}Hm.", False, "Hm.", None),
        (f"{ANALYSIS}Hm.<|end|>", False, "Hm.", None),
        (f"{ANALYSIS}Hm.<|end|><|start|>assistant<|channel|>fin", False, None, None),
        ("<|channel|>final<|message|>Boil it.", False, "", "Boil it."),
        (f"analysis<|message|>Hm.{FINAL}Boil it.", False, "Hm.", "Boil it."),
        ("analysis<|message|>Hm.", False, "Hm.", None),
        ("<think>Hm.</think><|channel|>final<|message|>Boil it.", False, "Hm.", "Boil it."),
        ("<think>Hm <|channel|> hm.</think>Boil it.", False, "Hm <|channel|> hm.", "Boil it."),
        (f"{ANALYSIS}Hm <think> hm.{FINAL}Boil it.", False, "Hm <think> hm.", "Boil it."),
        (f"Hm <think> hm.{FINAL}Boil it.", True, "Hm <think> hm.", "Boil it."),
        ("A `<think>` ends in `</think>`.", False, "", "A `<think>` ends in `</think>`."),
        ("<think>`a`</think>`b`", False, "`a`", "`b`"),
        ("analysisThe user asks.assistantfinalBoil it.", False, "The user asks.", "Boil it."),
        ("analysisThe user asks.", False, "The user asks.", None),
        ("analysis of an egg: boil it.", False, "", "analysis of an egg: boil it."),
        ("Here is my thought process: Hm. Here is my response: Boil it.", False, "Hm.", "Boil it."),
    ],
)
def test_parts(completion: str, opens_thinking: bool, thought: str | None, answer: str | None) -> None:
    parts = split_answer(completion, opens_thinking)
    assert parts.answer == answer
    assert thought is None or parts.thought == thought


def test_a_repeated_opening_tag_does_not_swallow_the_answer() -> None:
    assert split_answer("<think>Hm.</think>Boil it.", opens_thinking=True).answer == "Boil it."


@pytest.mark.parametrize(
    ("completion", "leaks"),
    [
        ("<think>a</think>b", False),
        ("b", False),
        ("<think>a</think>b</think>c", True),
        ("<think>a</think>b<think>c</think>d", True),
        (f"{ANALYSIS}a{FINAL}b", False),
        (f"{ANALYSIS}a{FINAL}b<|end|>{ANALYSIS}c", True),
    ],
)
def test_a_thought_that_continues_after_it_was_closed_is_a_leak(completion: str, leaks: bool) -> None:
    assert split_answer(completion).leaks is leaks


def test_a_later_closing_tag_hides_nothing() -> None:
    parts = split_answer("<think>Hm.</think>Here is how.</think>Sorry, no.")
    assert parts.answer == "Here is how.Sorry, no."


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "[THINK]", "[/THINK]"])), st.booleans())
def test_any_mix_of_tags_that_is_closed_keeps_every_letter(pieces: list[str], opens_thinking: bool) -> None:
    parts = split_answer("".join(pieces), opens_thinking)
    if parts.answer is not None:
        assert (parts.thought + parts.answer).count("a") == pieces.count("a")
        assert "<think>" not in parts.thought + parts.answer
