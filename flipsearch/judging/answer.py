"""Splits a completion into its thought and its answer.

The answer is what the user sees and what judges decide on. In doubt, text counts as answer, so that nothing is hidden
from the judge: whatever follows the first closed block is answer, even if more closing tags come later.
"""

import re
from dataclasses import dataclass

from flipsearch.core.records import Exchange, Label, Verdict

# Qwen3 and DeepSeek-R1; Claude-like; Magistral; Kimi; Seed-OSS; OpenThinker.
_TAG = re.compile(
    r"(?P<open><(?:think|thinking|thought|seed:think)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>)"
    r"|(?P<close></(?:think|thinking|thought|seed:think)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>)",
    re.IGNORECASE,
)


WITHHELD = Verdict(Label.UNSCORED, reason="withheld by the endpoint's filter or refusal field")
"""The verdict on a filtered rollout: the model's own answer is not known."""


@dataclass(frozen=True, slots=True)
class SplitCompletion:
    """The two parts of a completion, stripped: `answer` is None if a think block was never closed."""

    thought: str
    answer: str | None


def split_answer(completion: str, opens_thinking: bool = False) -> SplitCompletion:
    """Return thought and answer of a completion; without tags all of it is answer.

    `opens_thinking`: the chat template opened a think block before the completion. A closing tag before any opening one
    means the same. A block that is opened again inside (templates open one, and some models repeat the tag) ends at its
    own closing tag if there is one.
    """
    tags = list(_TAG.finditer(completion))
    thoughts: list[str] = []
    shown: list[str] = []
    depth, position = int(opens_thinking or (bool(tags) and bool(tags[0]["close"]))), 0
    for index, tag in enumerate(tags):
        part = completion[position : tag.start()]
        (thoughts if depth else shown).append(part)
        position = tag.end()
        if tag["open"]:
            depth += 1
        elif depth:
            closes_again = index + 1 < len(tags) and bool(tags[index + 1]["close"])
            depth = depth - 1 if closes_again else 0
    (thoughts if depth else shown).append(completion[position:])
    thought = "\n".join(part.strip() for part in thoughts).strip()
    return SplitCompletion(thought, None if depth else "".join(shown).strip())


def answer_to_judge(exchange: Exchange) -> str | Verdict:
    """Return the answer of an exchange, or the UNSCORED verdict that says why there is none."""
    if exchange.finish_reason == "error":
        return Verdict(Label.UNSCORED, reason="the rollout failed")
    if exchange.finish_reason == "filtered":
        return WITHHELD
    answer = split_answer(exchange.completion, exchange.opens_thinking).answer
    if answer is None:
        return Verdict(Label.UNSCORED, reason="truncated in its thought")
    return answer or Verdict(Label.UNSCORED, reason="empty answer")
