"""Turns requests into prompt ids and completion ids into text; the only caller of `apply_chat_template`.

Prompts and contexts are hostile text. A control token is a token that only the chat template may write: every special
token, and every added token that the template itself uses (`<think>`, `<|User|>`). Where a text spells one out, a space
is put after its first character ("< |im_end|>"); all other text reaches the tokenizer unchanged. (Tokenizers that
normalise their input would delete an invisible character.) The encoded prompt is then checked to hold the template's
own control tokens and no others. Knows nothing of models.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flipsearch.core.bounds import MAX_CHARACTERS, BoundExceededError, bounded_rendering
from flipsearch.core.errors import BackendError, ConfigError, one_line
from flipsearch.core.records import Context, Prompt, Request, content_id

Thinking = Literal["auto", "on", "off"]
Message = dict[str, str]
THINK_MARKS = ("<think>", "</think>")
THINK_MARK = re.compile(f"({'|'.join(THINK_MARKS)})")
CLOSE_THINKING = "\n</think>\n\n"
PROBE = "quokka"
TEMPLATE_DATE = datetime.datetime(2026, 1, 1)
"""The date given to templates that write today's date, so that a request is the same prompt every day."""


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
            if id in self.special_ids or text in THINK_MARKS or any(text in template for template in templates)
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
    """A Hugging Face tokenizer with its chat template and thinking switch; "auto" is the template's default.

    Raises BackendError for a tokenizer without a usable chat template and ConfigError for an unknown switch.
    """

    def __init__(self, tokenizer: Any, thinking: Thinking = "auto") -> None:
        if thinking not in get_args(Thinking):
            raise ConfigError(f"thinking is '{thinking}', expected one of {', '.join(get_args(Thinking))}.")
        self._tokenizer, self._thinking = tokenizer, thinking
        self._template = _chat_template(tokenizer)
        self._options: dict[str, Any] = {}
        if "strftime_now" in self._template:
            self._options["strftime_now"] = TEMPLATE_DATE.strftime
        if "enable_thinking" in self._template and thinking != "auto":
            self._options["enable_thinking"] = thinking == "on"
        try:
            baseline = self._render([{"role": "user", "content": PROBE}])
        except Exception as error:  # a template can raise anything
            reason = one_line(error)
            raise BackendError(f"the model's chat template cannot render one user message: {reason}") from error
        opens = baseline.rstrip().endswith("<think>")
        self._closes_thinking, self.opens_thinking = opens and thinking == "off", opens and thinking != "off"
        try:
            messages = [{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}]
            self.takes_system = PROBE in self._render(messages)
        except Exception:  # raising is how a template says that it takes no system role
            self.takes_system = False
        self.identity = content_id("chat", self._template, thinking)
        self._control = ControlTokens(tokenizer, self._template, baseline)
        think_ids = {id for id, text in self._control.tokens.items() if text in THINK_MARKS}
        self._dropped_ids = frozenset(self._control.special_ids - think_ids)
        self._expected_ids: dict[tuple[str, ...], list[int]] = {}
        """Roles of the messages -> the control tokens that the template writes around them."""
        self.notes = tuple(self._notes(baseline))

    def encode(self, request: Request) -> EncodedPrompt:
        """Return the prompt ids of a request; BackendError if its text cannot be encoded safely."""
        messages = lay_out(request.prompt, request.context, self.takes_system)
        ids = self._ids([{**message, "content": self._control.defuse(message["content"])} for message in messages])
        roles = tuple(message["role"] for message in messages)
        if roles not in self._expected_ids:
            probe = self._ids([{"role": role, "content": PROBE} for role in roles])
            self._expected_ids[roles] = self._control.among(probe)
        if self._control.among(ids) != self._expected_ids[roles]:
            raise BackendError("the prompt or context spells out a control token of the model; remove it.")
        return EncodedPrompt(tuple(ids), self.opens_thinking)

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Return the text of a completion, special tokens removed and think marks kept."""
        kept = [id for id in completion_ids if id not in self._dropped_ids]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Return another model's completion in this model's tokens; of the control tokens only think marks survive."""
        parts = THINK_MARK.split(text)
        defused = (part if part in THINK_MARKS else self._control.defuse(part) for part in parts)
        return tuple(self._tokenize("".join(defused)))

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in tokens, without any template."""
        return len(self._tokenize(self._control.defuse(text)))

    def _render(self, messages: list[Message]) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, **self._options}
        with bounded_rendering():
            text: str = self._tokenizer.apply_chat_template(messages, **options)
        if len(text) > MAX_CHARACTERS + 10 * sum(len(message["content"]) for message in messages):
            raise BoundExceededError(f"the chat template makes {len(text):,} characters of them")
        return text

    def _ids(self, messages: list[Message]) -> list[int]:
        try:
            return self._tokenize(self._render(messages) + (CLOSE_THINKING if self._closes_thinking else ""))
        except Exception as error:  # lone surrogates, and whatever a template may refuse
            raise BackendError(f"the prompt or context cannot be encoded: {one_line(error)}") from error

    def _tokenize(self, text: str) -> list[int]:
        # The template writes the special tokens, so the tokenizer must not add its own; nor may it warn of a long
        # text, which the backend reports itself.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _notes(self, baseline: str) -> list[str]:
        notes = []
        if not self.takes_system:
            notes.append("the chat template takes no system role: system contexts are placed before the prompt.")
        else:
            with_system = self._render([{"role": role, "content": PROBE} for role in ("system", "user")])
            if set(re.findall(r"\w+", baseline)) - set(re.findall(r"\w+", with_system)):
                notes.append("the chat template has a system text of its own, which a system context replaces.")
        if "strftime_now" in self._options:
            notes.append(f"the chat template writes today's date: it is given {TEMPLATE_DATE:%Y-%m-%d}.")
        has_switch = "enable_thinking" in self._options or baseline.rstrip().endswith("<think>")
        if self._thinking != "auto" and not has_switch:
            notes.append(f"the chat template has no thinking switch: thinking={self._thinking} changes nothing.")
        return notes


def lay_out(prompt: Prompt, context: Context | None = None, takes_system: bool = True) -> list[Message]:
    """Return the chat messages of a prompt under a context, which goes before the prompt without a system role."""
    if context is None or not context.text.strip():
        return [{"role": "user", "content": prompt.text}]
    if context.placement == "system" and takes_system:
        return [{"role": "system", "content": context.text}, {"role": "user", "content": prompt.text}]
    before, after = context.text, ""
    if context.placement == "after":
        before, after = "", context.text
    elif context.placement == "around":
        paragraphs = re.split(r"\n[ \t]*\n\s*", context.text.strip())
        before, after = "\n\n".join(paragraphs[:-1]) or paragraphs[-1], paragraphs[-1]
    return [{"role": "user", "content": "\n\n".join(part for part in (before, prompt.text, after) if part)}]


def _chat_template(tokenizer: Any) -> str:
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise BackendError(
            "the model's tokenizer has no chat template; use an instruction-tuned model, "
            "or put a chat_template.jinja into its folder."
        ) from error
    return template
