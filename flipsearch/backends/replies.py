"""Reads a chat completion: its answer, its thought, and why it ended, in the dialects of the servers that are in use.

A reply is hostile: nothing in it is trusted to have the type that OpenAI's form says, and what cannot be read is a
RequestError with its reason, never a completion: pages, streams and other APIs' own forms are recognised there.
"""

import json
import re
import tomllib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from flipsearch.backends.endpoint import PAGE, RequestError, error_of, page_title
from flipsearch.core.errors import one_line
from flipsearch.core.records import FinishReason
from flipsearch.core.thoughts import THOUGHT_MARK

DIALECTS = tomllib.loads(Path(__file__).with_name("dialects.toml").read_text(encoding="utf-8"))
FINISH_REASONS: Mapping[str, FinishReason] = {
    name: reason for reason, names in DIALECTS["finish_reasons"].items() for name in names
}
UNSTATED = ("", "null", "none", "unspecified")
"""Some servers state no reason where nothing is streamed."""
PREFIXES = ("finish_reason_", "finishreason.", "finish_reason.")
THOUGHTS = ("thinking", "reasoning", "reasoning_content", "summary", "thought")
"""Types of content parts, and their keys, that hold a thought."""


class _ChatMessage(BaseModel):
    content: str | list[Any] | None = None
    reasoning_content: Any = None  # in vLLM, SGLang, DeepSeek and llama.cpp
    reasoning: Any = None  # elsewhere and in newer versions
    thinking: Any = None
    reasoning_details: Any = None  # in OpenRouter, some of them encrypted
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _ChatChoice(BaseModel):
    message: _ChatMessage | None = None
    text: Any = None  # of a plain completion
    finish_reason: Any = None
    error: Any = None


class _ChatCompletion(BaseModel):
    choices: Annotated[list[_ChatChoice], Field(min_length=1)]
    usage: Any = None
    error: Any = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A completion as an endpoint returned it; a thought that came separately is a think block before the answer."""

    completion: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    """0 where it is not reported."""
    unknown_reason: str = ""
    """The endpoint's own reason, if it is not known; the completion then counts as ended by itself."""


def parse_reply(content: bytes, max_tokens: int) -> ChatReply:
    """Return the reply in a response's body; RequestError, in one line, if it holds none.

    A reply whose reason is missing or unknown was cut off if it has `max_tokens` tokens. Text that a filter or a
    refusal field came with is kept as the completion of a filtered reply.
    """
    try:
        response = _ChatCompletion.model_validate_json(content.removeprefix(BOM_UTF8))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        stated = error_of(content)[0] if b'"error"' in content else ""
        if not stated and (came := foreign_reply(content)):
            raise RequestError(f"the endpoint's answer is no chat completion but {came}") from error
        why = f"it says: {stated}" if stated else f"{where}: {first['msg'][:150]}"
        raise RequestError(f"the endpoint's answer is no chat completion ({why})") from error
    choice = response.choices[0]
    if choice.message is None and choice.text is not None:
        raise RequestError(
            "the endpoint's answer is a plain completion, with text instead of a message: is it a proxy?"
        )
    if failure := choice.error or response.error:  # what stands beside it is what came before the failure
        raise RequestError(
            f"the completion ended with an error: {error_of(json.dumps({'error': failure}).encode())[0]}"
        )
    message, given = choice.message or _ChatMessage(), choice.finish_reason
    if message.tool_calls or message.function_call:
        raise RequestError("the model calls a tool, though none is offered")
    thoughts: list[str] = []
    answer = "".join(_texts(message.content, thoughts))
    apart = message.reasoning_content or message.reasoning or message.thinking or message.reasoning_details
    thoughts += _texts(apart, [])
    refusal = "".join(_texts(message.refusal, []))
    is_cut = _count(response.usage, "completion_tokens") >= max_tokens
    name = _plain(given)
    reason = FINISH_REASONS.get(name, "length" if is_cut else "stop")
    num_prompt_tokens = _count(response.usage, "prompt_tokens")
    if refusal or reason == "filtered":
        return ChatReply(answer or refusal, "filtered", num_prompt_tokens)
    if reason == "error":
        raise RequestError(f"the completion ended with finish_reason '{_shown(given)}'")
    thought, is_known = "\n".join(thoughts), name in FINISH_REASONS or name in UNSTATED
    if not answer and not thought and (message.content is None or not is_known):
        raise RequestError(f"the endpoint's message has no content (finish_reason '{_shown(given)}')")
    completion = answer
    if thought:  # a think block; that of a thought that was cut off stays open
        is_whole = answer or reason == "stop"
        thought = THOUGHT_MARK.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", thought)  # it may speak of marks
        completion = f"<think>\n{thought}" + (f"\n</think>\n\n{answer}" if is_whole else "")
    return ChatReply(completion, reason, num_prompt_tokens, "" if is_known else _shown(given))


def _texts(content: Any, thoughts: list[str]) -> Iterator[str]:
    """Yield a message's texts and add what it thought to `thoughts`; RequestError for a part without text."""
    for part in content if isinstance(content, list) else [content]:
        if part is None:
            continue
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in DIALECTS["parts_without_text"]:
            continue
        keys = ("text", "content", "refusal", *THOUGHTS)
        inner = next((part[key] for key in keys if part.get(key)), None) if isinstance(part, dict) else None
        if not isinstance(inner, str | list) and not (isinstance(part, dict) and "text" in part):
            raise RequestError(f"the endpoint's message holds a part of type '{_shown(kind)}' without text")
        text = "".join(_texts(inner, thoughts))
        if isinstance(kind, str) and kind in THOUGHTS:
            thoughts.append(text)
        else:
            yield text


def _plain(reason: Any) -> str:
    reason = reason.get("type") if isinstance(reason, dict) else reason  # SGLang's own
    name = "" if reason is None else str(reason).strip().lower().replace("-", "_").replace(" ", "_")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.partition(":")[0]  # Google's "content_filter: SAFETY"


def _shown(value: Any) -> str:
    return one_line(ValueError(value), 40) if value else "none"


def _count(usage: Any, key: str) -> int:
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


V1 = "does the address end in /v1?"


def foreign_reply(body: bytes) -> str:
    """Return in words what a body is and what to do; "" for JSON objects that no known API sends."""
    text = body[:4096].decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if not text:
        return "nothing at all: an empty body"
    if PAGE.match(text):
        return f"{page_title(text) or 'a web page'}: {V1}"
    if re.match(r"(?:data|event|id|retry)?:", text):
        return (
            "a stream of events, though none was requested: switch streaming off in the server or the proxy before it"
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return _lines(text)
    if isinstance(content, list):
        inner = _form(content[0]) if content else ""
        return f"a JSON list, expected an object{f' (it holds {inner})' if inner else f': {V1}'}"
    if not isinstance(content, dict):
        return f"a JSON {type(content).__name__}, expected an object: {V1}"
    shown = " ".join(text[:200].rpartition('"')[0].split())  # no text is cut within: it may repeat the key
    return _form(content) or ("" if content.get("choices") else f"an object without choices ({shown}…)")


def _lines(text: str) -> str:
    """Return what a text is that is no JSON as a whole; the first of several lines may be."""
    with suppress(ValueError, RecursionError):
        if form := _form(json.loads(text.partition("\n")[0])):
            return f"a stream of lines, the first one {form}"
    if (text[0] not in "{[" and "\ufffd" in text[:80]) or "\0" in text[:80]:
        return "binary data: is it another port, or https where http is given?"
    if text[0] in "{[":
        if "\ufffd" in text:
            return "JSON in another encoding than UTF-8"
        with suppress(ValueError, RecursionError):
            json.JSONDecoder().raw_decode(text)
            return "JSON with more behind its end"
        return "JSON that is torn: the connection or the server broke it off"
    return f"a text that is no JSON ({one_line(ValueError(text), 60)!r}): {V1}"


def _form(content: object) -> str:
    keys = content.keys() if isinstance(content, dict) else set[str]()
    forms = (form["what"] for form in DIALECTS["other_forms"] if keys >= set(form["keys"]) and "choices" not in keys)
    return next(forms, "")
