"""A tokenizer's chat template, and what rendering it with probes shows of it; the only caller of `apply_chat_template`.

What a template does is found by rendering probes: does it take a system message, does it want content as typed parts,
which of its variables switches thinking, how it writes a thought, and what it writes after an answer.
"""

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import Environment

from flipsearch.core.errors import BackendError, one_line
from flipsearch.core.thoughts import CHANNEL, FAMILIES, THOUGHT_MARK, USUAL_MARKS, ThoughtMarks
from flipsearch.templating.template import MAX_CHARACTERS, BoundExceededError, bounded_rendering

Turn = tuple[str, str]
"""Role and text of a message."""
PROBE, ANSWER, THOUGHT = "quokka", "wombat", "numbat"
"""Texts that no template writes."""
LONG_PROBE = "\n\n".join([f"{PROBE.title()} <b> & \"{PROBE}\" {{x}}, 'it'"] * 300)
"""A long one, of which case and signs are to stay."""
SHORT = 1_000
_MARK = re.compile(r"<\|\w+\|>|</?s>|<(?:start|end)_of_turn>")
TEMPLATE_DATE = datetime.datetime(2026, 1, 1)
"""The date given to templates that write today's date, so that a request is the same prompt every day."""
USUAL_SWITCH = "enable_thinking"
SWITCH = re.compile(
    r"(?<![.\w'\"])(?:(?:enable|use|with|(?P<not>no|skip|disable|without))_?)?(?:think|thinking|reasoning)"
    r"(?:_mode|_enabled|(?P<budget>_budget))?(?![\w'\"])"
)
SWITCH_VALUES = (
    (True, False), ("on", "off"), ("enabled", "disabled"), ("thinking", "chat"), ("think", "no_think"),
    ("/think", "/no_think"),
)  # fmt: skip
BUDGET_VALUES = ((-1, 0),)
"""Of Seed-OSS: as many tokens of thought as it likes, and none."""
EFFORT = "reasoning_effort"
EFFORTS = ("none", "minimal", "low")
"""From the least on; the first that the template names is what switches thinking off, as far as it can."""
LONGEST_MARK = 80
POWER = ("operator", "**")
"""As Jinja's lexer gives it: beyond a text's bold marks. No other single operation takes for ever within its memory."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")


@dataclass(frozen=True, slots=True)
class ThinkingSwitch:
    """A variable of a chat template that makes a model think or not, and its two values."""

    name: str
    on: Any
    off: Any

    @property
    def ends(self) -> bool:
        """Whether `off` is no thought at all."""
        return self.name != EFFORT or self.off == EFFORTS[0]


class ChatTemplate:
    """The chat template of a Hugging Face tokenizer; BackendError if it has none, or none that shows a user's text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            self.text: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise BackendError(
                "the model's tokenizer has no chat template; use an instruction-tuned model, "
                "or put a chat_template.jinja into its folder."
            ) from error
        if not isinstance(self.text, str) or not self.text.strip():
            raise BackendError(
                f"the model's chat template is {self.text!r:.40}, expected a text; put a chat_template.jinja into its "
                "folder, or fix chat_template in its tokenizer_config.json."
            )
        self.writes_date = "strftime_now" in self.text
        self._endless: set[tuple[str, ...]] = set()
        """Roles with which the template does not end even for short texts: tried once."""
        self._as_parts: dict[str, bool] = {}
        """Role -> whether its content is a list of typed parts, where a plain text fails or is left out."""
        try:
            if "**" in self.text and any(token[1:] == POWER for token in Environment().lex(self.text)):
                raise ValueError("it computes a power (**), which can take for ever")
            self._find_form("user")
        except Exception as error:  # a template can raise anything
            reason = one_line(error)
            raise BackendError(f"the model's chat template cannot render one user message: {reason}") from error
        self.takes_system = False
        with suppress(Exception):  # raising is how a template says that it takes no system role
            self._find_form("system", ("user", ANSWER))
            self.takes_system = True
        with suppress(Exception):
            self._find_form("assistant", before=(("user", "x"),))
        self._baseline = self.render([("user", PROBE)])
        if self.render([("user", PROBE)]) != self._baseline:
            raise BackendError("the model's chat template writes another prompt each time: is anything random in it?")
        long = self.render([("user", LONG_PROBE)])
        if long.lower().count(PROBE) < LONG_PROBE.lower().count(PROBE):
            raise BackendError("the model's chat template cuts long texts of the user: fix it, or use another model.")
        self.keeps_texts = " ".join(LONG_PROBE.split()) in " ".join(long.split())
        """Whether texts are written as they are, but for white space."""
        self.switch = self._find_switch()
        self.names_marks = True
        """Whether the template or the vocabulary names a thought mark."""
        self.marks = self._find_marks()

    def render(
        self, turns: Sequence[Turn], generates: bool = True, thought: Mapping[str, str] | None = None, **options: Any
    ) -> str:
        """Return the text of messages, up to the answer if it `generates` one; `thought` goes to the last message."""
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._as_parts.get(role) else text}
            for role, text in turns
        ]
        messages[-1] |= thought or {}
        if self.writes_date:
            options["strftime_now"] = TEMPLATE_DATE.strftime
        roles = tuple(role for role, _ in turns)
        if roles in self._endless:
            raise BoundExceededError("still running after its time")
        try:
            with bounded_rendering():
                text: str = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generates, **options
                )
        except BoundExceededError:
            if sum(len(text) for _, text in turns) < SHORT:
                self._endless.add(roles)
            raise
        if len(text) > MAX_CHARACTERS + 10 * sum(len(text) for _, text in turns):
            raise BoundExceededError(f"the chat template makes {len(text):,} characters of them")
        return text

    def check_whole(self, turns: Sequence[Turn], text: str) -> None:
        """Raise ValueError if what is rendered lacks a text of the user or the system, or a part of one."""
        shown = " ".join(text.split())
        if self.keeps_texts and not all(
            " ".join(text.split()) in shown for role, text in turns if role in ("user", "system")
        ):
            raise ValueError("the chat template leaves out or changes a part of it")

    def missing_header(self) -> str:
        """Return what the template writes before an earlier answer and leaves to the model before the next one."""
        with suppress(Exception):
            if self._baseline == self.render([("user", PROBE)], generates=False):
                whole = self.render([("user", PROBE), ("assistant", ANSWER)], generates=False)
                between, shown, _ = whole.removeprefix(self._baseline).partition(ANSWER)
                return between.strip() if shown and len(between) < LONGEST_MARK and PROBE not in between else ""
        return ""

    def foreign_marks(self) -> list[str]:
        """Return what the template writes as special tokens and the vocabulary has not."""
        known = self._added_tokens() | set(self._tokenizer.all_special_tokens)
        marks = dict.fromkeys(_MARK.findall("".join([self._baseline, *self.turn_tails()])))
        return [mark for mark in marks if mark not in known and not THOUGHT_MARK.fullmatch(mark)]

    def opens(self, prompt: str) -> bool:
        """Return whether a rendered prompt ends inside an open thought."""
        end = prompt.rstrip()[-LONGEST_MARK:]
        is_known = any(match["open"] and match.end() == len(end) for match in THOUGHT_MARK.finditer(end))
        return is_known or end.endswith(self.marks.open_mark)

    def turn_tails(self) -> Iterator[str]:
        """Yield what the template writes after an assistant's text: in the last turn, then in one before the last."""
        for after in ((), (("user", "x"),)):
            with suppress(Exception):
                turns = [("user", PROBE), ("assistant", ANSWER), *after]
                _, shown, tail = self.render(turns, generates=False).rpartition(ANSWER)
                if shown:  # some templates leave answers out
                    yield tail

    def default_system(self, baseline: str, options: Mapping[str, Any]) -> str:
        """Return the system text that the template writes where no system message is given; "" without one."""
        given = self.render([("system", ANSWER), ("user", PROBE)], **options)
        if not set(re.findall(r"\w+", baseline)) - set(re.findall(r"\w+", given)):
            return ""
        front = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(baseline, given, strict=False)))
        left, right = baseline[front:], given[front:]
        back = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left[::-1], right[::-1], strict=False)))
        return left[: len(left) - back].strip()

    def _find_form(self, role: str, after: Turn | None = None, before: Sequence[Turn] = ()) -> None:
        failure: Exception = ValueError(f"it leaves out the text of the {role}")
        for as_parts in (False, True):
            self._as_parts[role] = as_parts
            try:
                turns = [*before, (role, PROBE), *([after] if after else [])]
                text = self.render(turns, generates=role != "assistant")
                if PROBE in text and (after is None or after[1] in text):
                    return
            except Exception as error:
                failure = failure if as_parts else error
        self._as_parts[role] = False
        raise failure

    def _find_switch(self) -> ThinkingSwitch | None:
        matches = {match[0]: match for match in SWITCH.finditer(self.text)}
        candidates = [
            ThinkingSwitch(name, off, on) if matches[name]["not"] else ThinkingSwitch(name, on, off)
            for name in sorted(matches, key=lambda name: (name != USUAL_SWITCH, name))
            for on, off in (BUDGET_VALUES if matches[name]["budget"] else SWITCH_VALUES)
        ]
        if EFFORT in self.text:
            named = [value for value in EFFORTS if re.search(rf"['\"]{value}['\"]", self.text)]
            on = "medium" if re.search(r"['\"]medium['\"]", self.text) else "high"
            candidates.append(ThinkingSwitch(EFFORT, on, named[0] if named else "low"))
        differing: list[tuple[bool, ThinkingSwitch]] = []
        for switch in candidates:
            with suppress(Exception):
                on, off = (self.render([("user", PROBE)], **{switch.name: value}) for value in (switch.on, switch.off))
                if on != off:
                    ends = (THOUGHT_MARK.findall(text[-LONGEST_MARK:]) for text in (on, off))
                    differing.append((next(ends) == next(ends), switch))
        # First one that opens or closes a thought: others may only write down their value.
        return min(differing, key=lambda pair: pair[0])[1] if differing else None

    def _find_marks(self) -> ThoughtMarks:
        """Return how the template writes a thought, or the marks of the family that template or vocabulary name."""
        options = {self.switch.name: self.switch.on} if self.switch else {}
        for field in THOUGHT_FIELDS:
            with suppress(Exception):
                turns = [("user", PROBE), ("assistant", ANSWER)]
                text = self.render(turns, generates=False, thought={field: THOUGHT}, **options)
                before, _, after = text.partition(THOUGHT)
                end, shown, _ = after.partition(ANSWER)
                start = self._start_of_thought(before)
                if shown and start.strip() and end.strip():
                    return ThoughtMarks(start, end)
        vocabulary = self._added_tokens()
        for family in FAMILIES:
            if family.open_mark in self.text or (CHANNEL in self.text and family.start.startswith(CHANNEL)):
                return family
        for family in FAMILIES:
            if family.open_mark in vocabulary or (CHANNEL in vocabulary and family.start.startswith(CHANNEL)):
                return family
        self.names_marks = False
        return USUAL_MARKS

    def _start_of_thought(self, before: str) -> str:
        """Return the mark at the end of what the template writes before a thought."""
        known = [match.start() for match in THOUGHT_MARK.finditer(before) if match["open"]]
        if CHANNEL in before:
            known.append(before.rindex(CHANNEL))
        if not known and before.startswith(header := self._baseline.rstrip()):
            known = [len(header)] if before[len(header) :].strip() else []
        if not known:  # the prompt ends in it: the last token that the user's turn does not hold
            user = self.render([("user", PROBE)], generates=False)
            known = sorted(
                before.rindex(token) for token in self._added_tokens() if token in before and token not in user
            )
        return before[known[-1] :].lstrip() if known else ""

    def _added_tokens(self) -> set[str]:
        return {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.content.strip()}
