"""Thought and answer of a completion, separated by the marks that families of models write.

The answer is what the user sees and what judges decide on. In doubt, text counts as answer, so that nothing is hidden
from the judge: whatever follows the first closed block is answer, even if more closing marks come later.

    <think>, <seed:think>, …   Qwen3, R1, Seed-OSS, MiniMax and most others      [THINK]       Magistral
    <|channel|>analysis        gpt-oss, also as a server leaves it that drops the marks: "analysis…assistantfinal…"
    <|channel>thought          Gemma 4      <|START_THINKING|>  Command A      "Here is my thought process:"  Granite 3

A mark in backticks is one that the answer speaks of, unless it closes a thought.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_NAME = r"(?:think|thinking|thoughts?|reasoning)"
_OPEN = (
    rf"<(?:\w+[:|_])?{_NAME}(?:[:_](?!end>)\w+)?>|\[THINK\]|◁think▷|<\|(?:(?:begin_of|begin|start)_)?{_NAME}\|>"
    rf"|<\|{_NAME}_(?:begin|start)\|>|<\|open\|>think<\|sep\|>|<(?:\|channel|unused94)>\s*thought\b|<\|inner_prefix\|>"
)
_CLOSE = (
    rf"</(?:\w+[:|_])?{_NAME}(?:[:_]\w+)?>|<{_NAME}[:_]end>|\[/THINK\]|◁/think▷|<\|(?:/|end_of_|end_){_NAME}\|>"
    rf"|<\|{_NAME}_end\|>|<\|close\|>think<\|sep\|>|<(?:channel\||unused95)>|<\|inner_suffix\|>"
)
THOUGHT_MARK = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
CHANNEL = "<|channel|>"
MARK_PARTS: tuple[tuple[str, ...], ...] = (
    (CHANNEL, "<|message|>", "<|start|>", "<|end|>"),
    ("<|channel>", "<channel|>"),
    ("<unused94>", "<unused95>"),  # MedGemma
    ("<|open|>", "<|sep|>", "<|close|>"),
)
"""Tokens that are a thought mark only together; all belong to a vocabulary that has the first."""
_HEADER = re.compile(
    r"(?:(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*|\A\s*(?=\w+<\|message\|>))(?P<name>\w+)[^<]*<\|message\|>"
)
"""At the beginning also without its first token, which the prompt may have ended in."""
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>")
_PLAIN = (
    # As a server leaves gpt-oss's channels that drops special tokens, and Granite 3's own words.
    re.compile(r"\s*analysis(?P<thought>.*?)assistantfinal(?P<answer>.*)", re.DOTALL),
    re.compile(r"\s*analysis(?=[A-Z])(?P<thought>(?:(?!assistantfinal).)*)", re.DOTALL),
    re.compile(r"\s*Here(?:'s| is) my thought process:(?P<thought>.*?)Here(?:'s| is) my response:(?P<answer>.*)", re.S),
    re.compile(r"\s*Here(?:'s| is) my thought process:(?P<thought>.*)", re.DOTALL),
)


@dataclass(frozen=True, slots=True)
class SplitCompletion:
    """The two parts of a completion, stripped: `answer` is None if the thought was never closed."""

    thought: str
    answer: str | None
    leaks: bool = False
    """Thought continues in the answer: after the first thought was closed, a mark closes or opens one again."""

    @property
    def has_thought(self) -> bool:
        """Whether the model thought, or was cut before it had closed its thought."""
        return bool(self.thought) or self.answer is None


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """How a chat template writes the beginning and the end of a thought."""

    start: str
    """With the white space around it."""
    end: str
    """With all that the template writes before the answer; what is forced where a thought is cut off."""

    @property
    def open_mark(self) -> str:
        """What shows that a thought begins."""
        return self.start.strip()

    @property
    def close_mark(self) -> str:
        """What shows that the answer begins: the mark without what surrounds it, of channels the answer's header."""
        if self.start.startswith(CHANNEL):
            return self.end[self.end.index(CHANNEL) :]
        mark = THOUGHT_MARK.search(self.end)
        return mark[0] if mark else self.end.strip()

    @property
    def are_known(self) -> bool:
        """Whether `split_answer` knows them."""
        is_tag = THOUGHT_MARK.fullmatch(self.open_mark) and THOUGHT_MARK.fullmatch(self.close_mark)
        return bool(is_tag) or self.start.startswith(CHANNEL)


USUAL_MARKS = ThoughtMarks("<think>\n", "\n</think>\n\n")
FAMILIES = (
    USUAL_MARKS,
    ThoughtMarks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ThoughtMarks("[THINK]", "[/THINK]"),
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ThoughtMarks("<|channel>thought\n", "<channel|>"),
    ThoughtMarks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ThoughtMarks("<seed:think>", "</seed:think>"),
    ThoughtMarks("<mm:think>", "</mm:think>"),
    ThoughtMarks("◁think▷", "◁/think▷"),
    ThoughtMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),
    ThoughtMarks("<thinking>\n", "\n</thinking>\n\n"),
    ThoughtMarks("<thought>\n", "\n</thought>\n\n"),
    ThoughtMarks("<reasoning>\n", "\n</reasoning>\n\n"),
)
"""Marks of families, for templates that do not show how they write a thought."""


@lru_cache(maxsize=1024)
def split_answer(completion: str, opens_thinking: bool = False) -> SplitCompletion:
    """Return thought and answer of a completion; without marks all of it is answer.

    `opens_thinking`: the chat template opened a think block before the completion. A closing mark before any opening
    one means the same. A block that is opened again inside (templates open one, and some models repeat the mark) ends
    at its own closing mark if there is one.
    """
    marks = list(_marks(completion, opens_thinking))
    header = _HEADER.match(completion)
    if header or CHANNEL in (completion[: marks[0].start()] if marks else completion):
        return _split_channels(completion, opens_thinking)
    if not marks and not opens_thinking:
        for plain in _PLAIN:
            if match := plain.fullmatch(completion):
                answer = match.groupdict().get("answer")
                return SplitCompletion(match["thought"].strip(), None if answer is None else answer.strip())
    thoughts: list[str] = []
    shown: list[str] = []
    depth, position = int(opens_thinking or (bool(marks) and bool(marks[0]["close"]))), 0
    was_closed = leaks = False
    for index, mark in enumerate(marks):
        part = completion[position : mark.start()]
        (thoughts if depth else shown).append(part)
        position = mark.end()
        leaks |= was_closed and not depth
        if mark["open"]:
            depth += 1
        elif depth:
            closes_again = index + 1 < len(marks) and bool(marks[index + 1]["close"])
            depth = depth - 1 if closes_again else 0
            was_closed = True
    (thoughts if depth else shown).append(completion[position:])
    answer = None if depth else "".join(shown).strip()
    if depth and CHANNEL in completion:  # a thought in channels speaks of another family's marks
        return _split_channels(completion, opens_thinking)
    if answer and CHANNEL in answer:  # a server that returns the thought apart may leave the answer's header
        inner = _split_channels(answer, opens_thinking=False)
        answer, leaks, thoughts = inner.answer, leaks or bool(inner.thought), [*thoughts, inner.thought]
    return SplitCompletion("\n".join(part.strip() for part in thoughts).strip(), answer, leaks)


def _marks(completion: str, is_open: bool) -> Iterator[re.Match[str]]:
    """Yield the marks that are no mention; `is_open`: a thought is open before the completion."""
    for mark in THOUGHT_MARK.finditer(completion):
        around = completion[max(0, mark.start() - 1) : mark.start()] + completion[mark.end() : mark.end() + 1]
        if around != "``" or (mark["close"] and is_open):
            is_open |= bool(mark["open"])
            yield mark


def _split_channels(completion: str, opens_thinking: bool) -> SplitCompletion:
    """Split by the headers of channels: `analysis` is thought, any other is shown."""
    headers = list(_HEADER.finditer(completion))
    ends = [*(header.start() for header in headers), len(completion)]
    parts = [(opens_thinking, completion[: ends[0]])]
    parts += [(h["name"] == "analysis", completion[h.end() : end]) for h, end in zip(headers, ends[1:], strict=True)]
    parts = [(is_thought, _CHANNEL_END.sub("", text).strip()) for is_thought, text in parts]
    thought = "\n".join(text for is_thought, text in parts if is_thought and text)
    shown = [index for index, (is_thought, text) in enumerate(parts) if not is_thought and text]
    is_cut = parts[-1][0] or CHANNEL in parts[-1][1]  # in a thought, or in a header
    leaks = bool(shown) and any(is_thought for is_thought, _ in parts[shown[0] :])
    return SplitCompletion(thought, None if is_cut else "\n".join(parts[index][1] for index in shown), leaks)
