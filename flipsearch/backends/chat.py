"""Turns requests into prompt ids and completion ids into text.

Prompts and contexts are hostile text. A control token is a token that only the chat template may write: every special
token, and every added token that the template itself uses (`<think>`, `<|User|>`). Where a text spells one out, a space
is put after its first character ("< |im_end|>"); all other text reaches the tokenizer unchanged. (Tokenizers that
normalise their input would delete an invisible character.) The encoded prompt is then checked to hold the template's
own control tokens and no others.

A thought that has taken its budget is closed as the template closes it; the answer then has `max_tokens` of its own:

    before --opening mark--> thought --closing mark, the model's own or forced--> answer --max_tokens--> full

What is forced depends on nothing but the tokens before it: a completion continued from any of its prefixes is
the same. Knows nothing of models.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from flipsearch.backends.chat_template import (
    ANSWER,
    PROBE,
    TEMPLATE_DATE,
    THOUGHT,
    USUAL_SWITCH,
    ChatTemplate,
    Turn,
)
from flipsearch.core.errors import BackendError, ConfigError, one_line
from flipsearch.core.records import Context, Placement, Prompt, Request, Sampling, content_id
from flipsearch.core.thoughts import MARK_PARTS, THOUGHT_MARK

TAIL = 16
"""Last tokens in which a mark of several tokens is looked for."""
START_TOKENS = 8
"""A thought begins within this many tokens, or the model answers at once."""


@dataclass(frozen=True, slots=True)
class ThoughtWatch:
    """The marks of a thought, and how to find them in tokens: by one id each, or by their text."""

    open_mark: str
    close_mark: str
    open_id: int | None
    close_id: int | None
    closing_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]

    def opens(self, ids: Sequence[int]) -> bool:
        """Return whether the last token completes the mark that opens a thought."""
        return self._completes(ids, self.open_id, self.open_mark)

    def closes(self, ids: Sequence[int]) -> bool:
        """Return whether the last token completes the mark that closes a thought."""
        return self._completes(ids, self.close_id, self.close_mark)

    def num_thought_tokens(self, ids: Sequence[int]) -> int:
        """Return how many of a completion's tokens come up to the end of its first closing mark; 0 without one."""
        if self.close_id is not None:
            return list(ids).index(self.close_id) + 1 if self.close_id in ids else 0
        if self.close_mark not in self.decode(ids):
            return 0
        low, high = 0, len(ids)  # the shortest prefix with the mark is longer than `low`, and `high` at most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.close_mark in self.decode(ids[:middle]) else (middle, high)
        return high

    def _completes(self, ids: Sequence[int], id: int | None, mark: str) -> bool:
        if id is not None:
            return ids[-1] == id
        tail = ids[-TAIL:]
        return mark in self.decode(tail) and mark not in self.decode(tail[:-1])


@dataclass(slots=True)
class ThoughtBudget:
    """One completion as far as it is written, and what its budget says of the next token."""

    watch: ThoughtWatch
    sampling: Sampling
    in_thought: bool
    """At first: the prompt opened a thought."""
    ids: list[int] = field(default_factory=list)
    num_thought: int = 0
    """Tokens of the thought so far, without its marks."""
    num_answer: int = 0
    num_thought_tokens: int = 0
    """Tokens up to the end of the closing mark; 0 while the thought is open, or without one."""
    was_forced: bool = False
    _forced: list[int] = field(default_factory=list)

    @property
    def next_id(self) -> int | None:
        """The token that must come next; None leaves it to the model."""
        return self._forced[0] if self._forced else None

    @property
    def is_full(self) -> bool:
        """Whether the answer has all its tokens."""
        return not self.in_thought and self.num_answer >= self.sampling.max_tokens

    @property
    def num_left(self) -> int:
        """Most tokens that the model may write before the budget has to be checked again."""
        if self.in_thought:
            return self.sampling.think_tokens - self.num_thought
        may_open = not self.num_thought_tokens and self.num_answer < START_TOKENS
        left = self.sampling.max_tokens - self.num_answer
        return min(left, self.sampling.think_tokens) if may_open else left

    def follow_all(self, ids: Sequence[int]) -> Self:
        """Take several tokens, and return the budget."""
        for id in ids:
            self.follow(id)
        return self

    def follow(self, id: int) -> None:
        """Take the next token."""
        self.ids.append(id)
        if self._forced:
            self._forced = self._forced[1:] if id == self._forced[0] else []
            if not self._forced:
                self._close(was_forced=True)
        elif self.in_thought:
            self.num_thought += 1
            if self.watch.closes(self.ids):
                self._close(was_forced=False)
            elif self.num_thought == self.sampling.think_tokens:
                self._forced = list(self.watch.closing_ids)
        else:
            self.num_answer += 1
            is_at_start = not self.num_thought_tokens and self.num_answer <= START_TOKENS
            if is_at_start and self.watch.opens(self.ids):
                self.in_thought, self.num_answer = True, 0

    def _close(self, *, was_forced: bool) -> None:
        self.in_thought, self.was_forced = False, was_forced
        self.num_thought_tokens, self.num_answer = len(self.ids), 0


Thinking = Literal["auto", "on", "off"]
Message = dict[str, str]
THINK_MARKS = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A request in tokens, up to the first one that the model writes; it may end inside an open think block."""

    prompt_ids: tuple[int, ...]
    opens_thinking: bool


class ControlTokens:
    """The tokens that only a template may write: every special one, and every added one that `templates` spell out."""

    def __init__(self, tokenizer: Any, *templates: str) -> None:
        added = tokenizer.added_tokens_decoder
        self.special_ids = {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
        # Some vocabularies hold runs of white space as added tokens: those are ordinary text.
        texts = {id: token.content for id, token in added.items() if token.content.strip()}
        self.tokens: dict[int, str] = {
            id: text
            for id, text in texts.items()
            if id in self.special_ids or THOUGHT_MARK.fullmatch(text) or any(text in template for template in templates)
        }
        longest_first = sorted((text for text in self.tokens.values() if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def defuse(self, text: str) -> str:
        """Return `text` with a space inside every control token that it spells out."""
        return self._pattern.sub(lambda match: match[0][0] + " " + match[0][1:], text)

    def among(self, ids: Sequence[int]) -> list[int]:
        """Return those of `ids` that are control tokens, in order."""
        return [id for id in ids if id in self.tokens]


class Chat:
    """A tokenizer with chat template and thinking switch ("auto" is the template's own); BackendError without one."""

    def __init__(self, tokenizer: Any, thinking: Thinking = "auto") -> None:
        if thinking not in get_args(Thinking):
            raise ConfigError(f"thinking is '{thinking}', expected one of {', '.join(get_args(Thinking))}.")
        self._tokenizer, self._thinking = tokenizer, thinking
        self._template = ChatTemplate(tokenizer)
        switch = self._template.switch
        self.options = {} if switch is None or thinking == "auto" else {switch.name: getattr(switch, thinking)}
        """What the template is given beside the messages: its thinking switch."""
        self._off = {switch.name: switch.off} if switch else {}
        self.takes_system = self._template.takes_system
        baseline = self._template.render([("user", PROBE)], **self.options)
        self.marks, opens = self._template.marks, self._template.opens(baseline)
        self.opens_thinking = opens and thinking != "off"
        """Of a prompt without a context; `encode` returns it for each request."""
        is_closed = baseline.rstrip().endswith(self.marks.close_mark)
        self.thinks = self._template.names_marks and thinking != "off" and not is_closed
        """Whether the model may think before it answers, as far as its template shows."""
        self.identity = content_id("chat", self._template.text, thinking)
        self._control = ControlTokens(tokenizer, self._template.text, baseline)
        self._thought_ids = self._mark_ids()
        self._dropped_ids = self._control.special_ids - self._thought_ids
        whole, start = (
            self._control.among(self._tokenize(text)) for text in (self.marks.start + self.marks.end, self.marks.start)
        )
        single = [[id] for id in self._thought_ids if THOUGHT_MARK.fullmatch(self._control.tokens[id])]
        self._thought_tails = [whole, start, *single]
        """Control tokens of a thought at the end of a prompt: closed at once, or open."""
        whole, bos = self._tokenize("x", add_special_tokens=True), getattr(tokenizer, "bos_token_id", None)
        self._begin_ids = tuple(whole[:1]) if bos is not None and whole[:1] == [bos] else ()
        """What the tokenizer adds before a text outside of any template."""
        self._expected_ids: dict[tuple[str, ...], list[int]] = {}
        """Roles of the messages -> the control tokens that the template writes around them."""
        self.end_ids = self._end_ids()
        """The token that the template writes after an answer; a completion ends there whatever else ends it."""
        self.same_placements = self._same_placements()
        """Placement -> another one that gives the model the same tokens."""
        self.system_notes = tuple(self._system_notes(baseline))
        self.notes = tuple(self._notes(opens))

    def encode(self, request: Request) -> EncodedPrompt:
        """Return the prompt ids of a request; BackendError if its text cannot be encoded safely."""
        messages = self.messages(request)
        if request.prompt.is_raw:
            return self._encode_raw("\n\n".join(message["content"] for message in messages))
        roles = tuple(message["role"] for message in messages)
        ids, opens = self._ids([(message["role"], message["content"]) for message in messages], request.skips_thought)
        if roles not in self._expected_ids:
            probe, _ = self._ids([(role, PROBE) for role in roles], skips_thought=False)
            self._expected_ids[roles] = self._control.among(probe)
        if self._without_last_marks(ids) != self._without_last_marks(self._expected_ids[roles]):
            raise BackendError("the prompt or context spells out a control token of the model; remove it.")
        return EncodedPrompt(tuple(ids), opens)

    def _encode_raw(self, text: str) -> EncodedPrompt:
        try:
            ids = self._tokenize(text)
        except Exception as error:  # lone surrogates
            raise BackendError(f"the prompt or context cannot be encoded: {one_line(error)}") from error
        if self._control.among(ids):
            raise BackendError("the prompt or context spells out a control token of the model; remove it.")
        return EncodedPrompt((*self._begin_ids, *ids), opens_thinking=False)

    def messages(self, request: Request) -> list[Message]:
        """Return what `encode` gives the chat template: control tokens that texts spell out are broken."""
        laid_out = lay_out(request.prompt, request.context, self.takes_system)
        return [{**message, "content": self._control.defuse(message["content"])} for message in laid_out]

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Return a completion's text without special tokens; thought marks stay, spelled as judges know them."""
        kept = [id for id in completion_ids if id not in self._dropped_ids]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not self.marks.are_known:
            usual = zip((self.marks.open_mark, self.marks.close_mark), THINK_MARKS, strict=True)
            for own, known in usual:
                text = text.replace(own, known)
        return text

    def respelled(self, text: str) -> str:
        """Return a text as the tokenizer spells it: some write everything in lower case."""
        return self.decode(self._tokenize(self._control.defuse(text)))

    def completion_ids(self, answer: str, thought: str = "") -> tuple[int, ...]:
        """Return another model's answer and thought in this model's tokens and marks; control tokens are broken."""
        text = self._control.defuse(answer)
        if thought or self.opens_thinking:
            start = "" if self.opens_thinking else self.marks.start
            text = f"{start}{self._control.defuse(thought)}{self.marks.end}{text}"
        return tuple(self._tokenize(text))

    def beginning(self, answer: str, num_tokens: int) -> str:
        """Return the first tokens of an answer as text; "" if it has no more than these."""
        ids = self._tokenize(self._control.defuse(answer))
        # The last token may be a part of a character.
        return self.decode(ids[:num_tokens]).rstrip("\ufffd") if len(ids) > num_tokens else ""

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in tokens, without any template."""
        return len(self._tokenize(self._control.defuse(text)))

    def thought_watch(self) -> "ThoughtWatch":
        """Return what finds the marks of a thought among completion ids."""
        texts = {text: id for id, text in self._control.tokens.items()}
        open_mark, close_mark = self.marks.open_mark, self.marks.close_mark

        def decode(ids: Sequence[int]) -> str:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

        forced = tuple(self._tokenize(self.marks.end))
        return ThoughtWatch(open_mark, close_mark, texts.get(open_mark), texts.get(close_mark), forced, decode)

    def end_note(self, known_ids: Collection[int]) -> tuple[str, ...]:
        """Return a note if the template ends a turn with a token that is not among `known_ids`."""
        added = [repr(self._control.tokens[id]) for id in sorted(self.end_ids - set(known_ids))]
        text = "which neither the generation settings nor the tokenizer name as an end: completions end there too."
        return (f"the chat template ends a turn with {added[0]}, {text}",) if added else ()

    def _ids(self, messages: Sequence[Turn], skips_thought: bool) -> tuple[list[int], bool]:
        try:
            text = self._template.render(messages, **self.options)
            self._template.check_whole(messages, text)
            opens = self._template.opens(text)
            if skips_thought and not opens and not text.rstrip().endswith(self.marks.close_mark):
                before, text = text, self._template.render(messages, **(self.options | self._off))
                opens = self._template.opens(text)
                text += self.marks.start if text == before else ""
                opens |= text != before and text.endswith(self.marks.start)
            if opens and (skips_thought or self._thinking == "off"):
                text, opens = text + self.marks.end, False
            return self._tokenize(text), opens
        except Exception as error:  # lone surrogates, and whatever a template may refuse
            raise BackendError(f"the prompt or context cannot be encoded: {one_line(error)}") from error

    def _without_last_marks(self, ids: Sequence[int]) -> list[int]:
        """Return the control tokens among `ids` without a thought at the end: whether there is one, requests differ."""
        controls = self._control.among(ids)
        tail = next((tail for tail in self._thought_tails if tail and controls[-len(tail) :] == tail), [])
        return controls[: len(controls) - len(tail)]

    def _mark_ids(self) -> set[int]:
        texts = {text: id for id, text in self._control.tokens.items()}
        parts = {part for parts in MARK_PARTS if parts[0] in texts for part in parts}
        own = "" if self.marks.are_known else self.marks.open_mark + self.marks.close_mark
        return {id for text, id in texts.items() if THOUGHT_MARK.fullmatch(text) or text in parts or text in own}

    def _end_ids(self) -> frozenset[int]:
        """Return the control token after the content of an assistant's turn, the last one first, if there is one."""
        for tail in self._template.turn_tails():
            controls = self._control.among(self._tokenize(tail.lstrip())[:1])
            if controls and controls[0] not in self._thought_ids:
                return frozenset(controls)
        return frozenset()

    def _same_placements(self) -> dict[Placement, Placement]:
        prompt, same = Prompt(PROBE, "benign"), dict[Placement, Placement]()
        ids: dict[Placement, tuple[int, ...]] = {}
        for placement in ("before", "after", "around", "system"):
            with suppress(BackendError):
                own = self.encode(Request(prompt, Context(f"{ANSWER}.\n\n{THOUGHT}.", placement))).prompt_ids
                if twins := [other for other, known in ids.items() if known == own]:
                    same[placement] = twins[0]
                ids[placement] = own
        return same

    def _tokenize(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # The template writes the special tokens, so the tokenizer must not. Long texts are the backend's to report.
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def _system_notes(self, baseline: str) -> Iterator[str]:
        """What is to be known of system contexts alone."""
        if not self.takes_system:
            yield "the chat template takes no system role: system contexts are placed before the prompt."
        elif default := self._template.default_system(baseline, self.options):
            text = self._control.defuse(" ".join(default.split()))
            yield (
                f"the chat template has a system text of its own ('{text[:100]}{'…' if len(text) > 100 else ''}'), "
                "which a system context replaces: a part of what such a context changes is the loss of that text. The "
                "neutral placebo in the system place loses it too and is the fair comparison there, the empty one not."
            )

    def _notes(self, opens: bool) -> Iterator[str]:
        if not self._template.keeps_texts:
            yield "the chat template changes the case or the signs of texts: prompts do not arrive as written."
        if header := self._template.missing_header():
            yield (
                f"the chat template leaves '{self._control.defuse(header)}' before an answer to the model, though it "
                "writes it before earlier ones: does it lack add_generation_prompt?"
            )
        if foreign := self._template.foreign_marks():
            names = ", ".join(repr(self._control.defuse(mark)) for mark in foreign[:3])
            yield f"the chat template writes {names}, no token of this vocabulary: is it another model's?"
        if self._template.writes_date:
            yield f"the chat template writes today's date: it is given {TEMPLATE_DATE:%Y-%m-%d}."
        if self._template.switch is None and self._thinking != "auto" and not opens:
            yield f"the chat template has no thinking switch: thinking={self._thinking} changes nothing."
        if (switch := self._template.switch) and self._thinking != "auto" and switch.name != USUAL_SWITCH:
            value = getattr(switch, self._thinking)
            limit = "; it names no way to think not at all" if self._thinking == "off" and not switch.ends else ""
            yield f"the template's name for thinking={self._thinking} is {switch.name}={value!r}{limit}."


def lay_out(prompt: Prompt, context: Context | None = None, takes_system: bool = True) -> list[Message]:
    """Return the messages of a prompt, earlier turns first, under a context, which stands with the last turn."""
    earlier = [{"role": role, "content": content} for role, content in prompt.turns]
    if context is None or not context.text.strip():
        return [*earlier, {"role": "user", "content": prompt.text}]
    if context.placement == "system" and takes_system:
        return [{"role": "system", "content": context.text}, *earlier, {"role": "user", "content": prompt.text}]
    before, after = ("", context.text) if context.placement == "after" else (context.text, "")
    if context.placement == "around":
        paragraphs = re.split(r"\n[ \t]*\n\s*", context.text.strip())
        before, after = "\n\n".join(paragraphs[:-1]) or paragraphs[-1], paragraphs[-1]
    content = "\n\n".join(part for part in (before, prompt.text, after) if part)
    return [*earlier, {"role": "user", "content": content}]
