"""What came instead of a chat completion, and what to do about it: pages, streams, and other APIs' own forms."""

import json
import re

from flipsearch.core.errors import one_line

V1 = "does the address end in /v1?"
OTHER_FORMS = {
    ("done",): "a reply in Ollama's own form; its address for chat completions is http://HOST:11434/v1#NAME",
    ("candidates",): "a reply in the form of Google's API; its address for chat completions ends in /v1beta/openai",
    ("content", "type"): "a reply in the form of Anthropic's API; its address for chat completions ends in /v1",
    ("output", "object"): f"a reply of the responses API; {V1}",
    ("data", "object"): f"a list; {V1}",
    ("generated_text",): f"a reply in the form of a text generation server; {V1}",
    ("content", "stop"): f"a reply in llama.cpp's own form; {V1}",
}
"""Keys of a JSON object -> what it is."""
PAGE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.{1,80}?)</title", re.IGNORECASE | re.DOTALL)


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
    return _form(content)


def page_title(text: str) -> str:
    """Return "a web page" with its title; "" for any other text, and for a page without a title."""
    title = TITLE.search(text) if PAGE.match(text) else None
    return f"a web page ({one_line(ValueError(title[1]), 60)!r})" if title else ""


def _lines(text: str) -> str:
    """Return what a text is that is no JSON as a whole; the first of several lines may be."""
    try:
        if form := _form(json.loads(text.partition("\n")[0])):
            return f"a stream of lines, the first one {form}"
    except (ValueError, RecursionError):
        pass
    if "\ufffd" in text[:80] or "\0" in text[:80]:
        return "binary data: is it another port, or https where http is given?"
    if text[0] in "{[":
        return "JSON that is torn: the connection or the server broke it off"
    return f"a text that is no JSON ({one_line(ValueError(text), 60)!r}): {V1}"


def _form(content: object) -> str:
    keys = content.keys() if isinstance(content, dict) else set[str]()
    return next((what for named, what in OTHER_FORMS.items() if keys >= set(named) and "choices" not in keys), "")
