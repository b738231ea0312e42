"""Messages to prompt ids and completion ids back to text: the only caller of `apply_chat_template`.

Prompts and contexts are hostile text. A control token is a token that only the chat template may write: every special
token, and every added token that the template itself uses (`<think>`, `<|User|>`). Where a text spells one out, a space
is put after its first character ("< |im_end|>"), so that it stays readable text; all other text reaches the tokenizer
unchanged. A space, because tokenizers that clean up their input delete invisible characters and would put the control
token together again. The encoded prompt is then checked to hold the template's own control tokens and no others.

A tokenizer is passed in; this module knows nothing of models.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import Context, Prompt, Request, content_id

Thinking = Literal["auto", "on", "off"]
THINKING: tuple[Thinking, ...] = ("auto", "on", "off")
Message = dict[str, str]

THINK_MARKS = ("<think>", "</think>")
_THINK_MARK = re.compile(f"({'|'.join(THINK_MARKS)})")
CLOSE_THINKING = "\n</think>\n\n"
PROBE = "quokka"
TEMPLATE_DATE = datetime.datetime(2026, 1, 1)
"""What a template that writes today's date is told, so that the same request is the same prompt every day."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> added token, with `content` and `special`."""
        ...

    def get_chat_template(self) -> str:
        """Return the chat template's source; ValueError if there is none."""
        ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages."""
        ...

    def __call__(self, text: Any, /, **options: Any) -> Any:
        """Encode text."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Return the text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A request as the model reads it."""

    prompt_ids: tuple[int, ...]
    """Tokens up to the first one that the model writes."""
    opens_thinking: bool
    """They end inside an open think block."""


class ControlTokens:
    """The tokens that only a template may write: every special one, and every added one that `templates` spell out."""

    def __init__(self, tokenizer: Tokenizer, *templates: str) -> None:
        special = _special_ids(tokenizer)
        self._tokens = {
            id: token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            # Some vocabularies hold runs of white space as added tokens: those are ordinary text.
            if token.content.strip()
            and (id in special or token.content in THINK_MARKS or any(token.content in one for one in templates))
        }
        self._spelled = _any_of(self._tokens.values())

    def defuse(self, text: str) -> str:
        """Return `text` with a space inside every control token that it spells out."""
        return self._spelled.sub(lambda found: found[0][0] + " " + found[0][1:], text)

    def among(self, ids: Sequence[int]) -> list[int]:
        """Return those of `ids` that are control tokens, in order."""
        return [id for id in ids if id in self._tokens]

    def ids(self, texts: Iterable[str]) -> set[int]:
        """Return the ids of those of `texts` that are control tokens."""
        wanted = set(texts)
        return {id for id, text in self._tokens.items() if text in wanted}


class Chat:
    """A tokenizer with its chat template and thinking switch.

    `thinking` "auto" is the template's default. Raises BackendError for a tokenizer without a usable chat template and
    ConfigError for an unknown switch.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: Thinking = "auto") -> None:
        if thinking not in THINKING:
            raise ConfigError(f"thinking is '{thinking}', expected one of {', '.join(THINKING)}.")
        self._tokenizer = tokenizer
        self._thinking = thinking
        self._template = _template_of(tokenizer)
        self._options = self._template_options()
        baseline = self._probe([{"role": "user", "content": PROBE}])
        self._closes_thinking = thinking == "off" and baseline.rstrip().endswith("<think>")
        self.opens_thinking = baseline.rstrip().endswith("<think>") and thinking != "off"
        self.takes_system = self._takes_system()
        self.identity = content_id("chat", self._template, thinking)
        self._control = ControlTokens(tokenizer, self._template, baseline)
        self._dropped_ids = frozenset(_special_ids(tokenizer)) - self._control.ids(THINK_MARKS)
        self._expected: dict[tuple[str, ...], list[int]] = {}
        self.notes = tuple(self._notes(baseline))

    def messages(self, prompt: Prompt, context: Context | None = None) -> list[Message]:
        """Return the chat messages of a prompt under a context; without context text just the prompt."""
        return lay_out(prompt, context, self.takes_system)

    def encode(self, request: Request) -> EncodedPrompt:
        """Return the prompt ids of a request; BackendError if its text cannot be encoded safely."""
        messages = self.messages(request.prompt, request.context)
        ids = self._ids([{**message, "content": self.defuse(message["content"])} for message in messages])
        if self._control.among(ids) != self._expected_control_ids(messages):
            raise BackendError("the prompt or context spells out a control token of the model; remove it.")
        return EncodedPrompt(tuple(ids), self.opens_thinking)

    def defuse(self, text: str) -> str:
        """Return `text` with a space inside every control token that it spells out."""
        return self._control.defuse(text)

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Return the text of a completion, special tokens removed and think marks kept."""
        kept = [id for id in completion_ids if id not in self._dropped_ids]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Return what another model wrote in this model's tokens; of the control tokens only think marks stay such."""
        parts = _THINK_MARK.split(text)
        return tuple(self._tokenize("".join(part if part in THINK_MARKS else self.defuse(part) for part in parts)))

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in tokens, without any template."""
        return len(self._tokenize(self.defuse(text)))

    def _template_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if "strftime_now" in self._template:
            options["strftime_now"] = TEMPLATE_DATE.strftime
        if "enable_thinking" in self._template and self._thinking != "auto":
            options["enable_thinking"] = self._thinking == "on"
        return options

    def _render(self, messages: list[Message]) -> str:
        render: Callable[..., Any] = self._tokenizer.apply_chat_template
        text: str = render(messages, tokenize=False, add_generation_prompt=True, **self._options)
        return text

    def _probe(self, messages: list[Message]) -> str:
        try:
            return self._render(messages)
        except Exception as error:  # a template can raise anything
            raise BackendError(f"the model's chat template cannot render one user message: {_line(error)}") from error

    def _takes_system(self) -> bool:
        try:
            text = self._render([{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}])
        except Exception:  # raising is how a template says that it takes no system role
            return False
        return PROBE in text

    def _ids(self, messages: list[Message]) -> list[int]:
        try:
            return self._tokenize(self._render(messages) + (CLOSE_THINKING if self._closes_thinking else ""))
        except Exception as error:  # lone surrogates and what a template may refuse
            raise BackendError(f"the prompt or context cannot be encoded: {_line(error)}") from error

    def _tokenize(self, text: str) -> list[int]:
        # The template writes the special tokens, so the tokenizer must not add its own; nor shall it warn of a long
        # text, which the backend tells.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _expected_control_ids(self, messages: list[Message]) -> list[int]:
        roles = tuple(message["role"] for message in messages)
        if roles not in self._expected:
            self._expected[roles] = self._control.among(self._ids([{"role": role, "content": PROBE} for role in roles]))
        return self._expected[roles]

    def _notes(self, baseline: str) -> list[str]:
        notes = []
        if not self.takes_system:
            notes.append("the chat template takes no system role: system contexts are placed before the prompt.")
        elif self._replaces_default_system(baseline):
            notes.append("the chat template has a system text of its own, which a system context replaces.")
        if "strftime_now" in self._options:
            notes.append(f"the chat template writes today's date: it is told {TEMPLATE_DATE:%Y-%m-%d}.")
        if self._thinking != "auto" and not self._obeys_switch(baseline):
            notes.append(f"the chat template has no thinking switch: thinking={self._thinking} changes nothing.")
        return notes

    def _obeys_switch(self, baseline: str) -> bool:
        return "enable_thinking" in self._options or baseline.rstrip().endswith("<think>")

    def _replaces_default_system(self, baseline: str) -> bool:
        user: Message = {"role": "user", "content": PROBE}
        with_system = self._render([{"role": "system", "content": PROBE}, user])
        return bool(set(re.findall(r"\w+", baseline)) - set(re.findall(r"\w+", with_system)))


def lay_out(prompt: Prompt, context: Context | None = None, takes_system: bool = True) -> list[Message]:
    """Return the chat messages of a prompt under a context; without a system role it goes before the prompt."""
    if context is None or not context.text.strip():
        return [{"role": "user", "content": prompt.text}]
    if context.placement == "system" and takes_system:
        return [{"role": "system", "content": context.text}, {"role": "user", "content": prompt.text}]
    before, after = _sides(context)
    return [{"role": "user", "content": "\n\n".join(part for part in (before, prompt.text, after) if part)}]


def _template_of(tokenizer: Tokenizer) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise BackendError(
            "the model's tokenizer has no chat template; use an instruction-tuned model, "
            "or put a chat_template.jinja into its folder."
        ) from error


def _sides(context: Context) -> tuple[str, str]:
    """Return the texts before and after the prompt in the user message."""
    if context.placement == "after":
        return "", context.text
    if context.placement != "around":
        return context.text, ""
    paragraphs = re.split(r"\n[ \t]*\n\s*", context.text.strip())
    return "\n\n".join(paragraphs[:-1]) or paragraphs[-1], paragraphs[-1]


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
