"""Takes the think part and the answer part of a completion apart.

The answer is what the user is shown and what judges decide on. Doubtful cases fall so that nothing is hidden from the
judge: text after the first closed block is answer, whatever closing tags come later.
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion taken apart."""

    thought: str
    """What stands in think blocks, stripped; "" if there is none."""
    answer: str | None
    """What the user is shown, stripped; None if a think block was never closed."""

    @property
    def complete(self) -> bool:
        """Whether every think block was closed, so that there is an answer to judge (which may be empty)."""
        return self.answer is not None


def split_answer(completion: str, opens_thinking: bool = False) -> Answer:
    """Return thought and answer of a completion.

    `opens_thinking` says that the chat template had opened a think block before the completion. Without tags all is
    answer. A closing tag before any opening one ends a thought that began with the completion. A block that is opened
    again inside (templates open one, and some models repeat the tag) ends at its own closing tag where there is one.
    """
    tags = list(_TAG.finditer(completion))
    if not opens_thinking and tags and tags[0]["close"]:
        opens_thinking = True
    thoughts: list[str] = []
    shown: list[str] = []
    depth, position = int(opens_thinking), 0
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
    return Answer(thought, None if depth else "".join(shown).strip())


def what_to_judge(exchange: Exchange) -> str | Verdict:
    """Return the answer of an exchange, or the UNSCORED verdict that says why there is none."""
    if exchange.finish_reason == "error":
        return Verdict(Label.UNSCORED, reason="the rollout failed")
    answer = split_answer(exchange.completion, exchange.opens_thinking).answer
    if answer is None:
        return Verdict(Label.UNSCORED, reason="truncated in its thought")
    return answer or Verdict(Label.UNSCORED, reason="empty answer")
