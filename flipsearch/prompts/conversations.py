"""A cell that holds a prompt: a text, or chat turns of which the last one by the user is the prompt.

Known forms: `{"role": "user", "content": …}` (messages), `{"from": "human", "value": …}` (conversations), a content of
text parts, a list with one text (turns), a transcript ("Human: … Assistant: …", HH-RLHF; "User: … Agent: …", Aegis), a
text in the frame "### Instruction: … ### Response:" (ALERT). In csv such a list stands as text, in JSON or as Python
writes it; one that cannot be read is never taken for a prompt.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flipsearch.core.errors import PromptError
from flipsearch.core.records import Turn
from flipsearch.prompts.files import Table, is_missing, plain_name, whole_text
from flipsearch.prompts.formats import Row

LIST_COLUMNS = ("turns", "messages", "conversations", "conversation")
"""Columns that hold lists, also where the file could only write them as text."""
_ROLES = {"user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLES |= {"model": "assistant", "chatbot": "assistant", "bot": "assistant", "ai": "assistant"}
_ROLES |= {"agent": "assistant"}
_ROLES |= {"system": "system", "developer": "system"}
_SPELLS_TURNS = re.compile(r"\[\s*\{(?=.*['\"](?:role|from)['\"]\s*:)(?=.*['\"](?:content|value)['\"]\s*:)", re.DOTALL)
_SPEAKERS = {
    "Human": re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?"),
    "User": re.compile(r"(?:^|\n)(User|Assistant|Agent|AI|Bot|Chatbot|Model):[ \n]?"),
}
"""Who begins a transcript -> the marks of its turns."""
_FRAME = re.compile(r"### Instruction:\s*((?:(?!###).)+?)\s*### Response:", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The request of a row."""

    text: str
    turns: tuple[Turn, ...] = ()
    """Earlier turns of the chat, the user's first."""
    has_system: bool = False
    """The chat began with a system text, which is left out: contexts take that place."""
    has_answer: bool = False
    """An answer follows the prompt, and is left out."""
    was_framed: bool = False
    """It stood in the frame of another model's prompts."""


def read_request(table: Table, row: Row, column: str) -> ChatPrompt:
    """Return the request in a cell, "" if it is missing; raises PromptError with the line for anything else."""
    value = row.cells.get(column)
    if is_missing(value):
        return ChatPrompt("")
    if isinstance(value, str):
        text, value = value.strip(), _spelled(value.strip(), plain_name(column) in LIST_COLUMNS)
        starts = ("['", '["') if plain_name(column) in LIST_COLUMNS else ()
        if isinstance(value, str) and (_SPELLS_TURNS.match(text) or text.startswith(starts)):
            raise PromptError(
                f"{table.at(row)}: column '{column}' spells out a list that is neither JSON nor Python (pandas "
                "writes arrays so): save the file as jsonl or parquet."
            )
    if isinstance(value, str):
        framed = _FRAME.fullmatch(value)
        return ChatPrompt(whole_text(table, row, column, framed[1] if framed else value), was_framed=bool(framed))
    try:
        return _of_turns([value] if isinstance(value, Mapping) else value)
    except _NotARequestError as error:
        raise PromptError(f"{table.at(row)}: column '{column}' {error}.") from None


def _spelled(text: str, is_list_column: bool) -> Any:
    """Return the turns that a text spells out: a list, or a transcript; the text itself if it spells none."""
    if _SPELLS_TURNS.match(text) or (is_list_column and text.startswith("[")):
        return written_list(text)
    marks = _SPEAKERS.get(text.partition(":")[0])
    parts = marks.split(text) if marks else []
    roles = [_ROLES[name.lower()] for name in parts[1::2]]
    if "assistant" not in roles:
        return text
    turns: list[dict[str, str]] = []
    for role, content in zip(roles, map(str.strip, parts[2::2]), strict=True):
        if turns and turns[-1]["from"] == role:  # a text may hold the mark of its own side
            turns[-1]["value"] += f"\n\n{content}"
        elif content:
            turns.append({"from": role, "value": content})
    return turns


class _NotARequestError(ValueError):
    pass


def written_list(text: str) -> Any:
    """Return the list that a text spells out, in JSON or as Python writes it; the text if it spells none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            if parse is not json.loads and _joins_texts(text):
                break
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
    return text


def _joins_texts(text: str) -> bool:
    """Return whether two texts stand side by side without a comma, as NumPy writes lists: Python would join them."""
    tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in pairwise(tokens))


def _of_turns(value: Any) -> ChatPrompt:
    if not isinstance(value, list):
        raise _NotARequestError(f"holds {type(value).__name__}, expected text or a list of chat turns")
    if not value:
        return ChatPrompt("")
    if all(isinstance(member, str) for member in value):
        if len(value) > 1:
            raise _NotARequestError(f"holds {len(value)} texts and does not say whose they are, expected one")
        return ChatPrompt(_whole(value[0]))
    if len(value) == 1 and isinstance(value[0], Mapping) and set(value[0]) == {"content"}:  # Arena-Hard
        value = [{"role": "user", **value[0]}]
    turns = [_turn(member) for member in value]
    chat = [turn for turn in turns if turn[0] != "system"]
    last = max((index for index, turn in enumerate(chat) if turn[0] == "user"), default=-1)
    if last < 0:
        raise _NotARequestError("holds no turn of the user")
    roles = [role for role, _ in chat[: last + 1]]
    if roles != ["user", "assistant"] * (last // 2) + ["user"]:
        raise _NotARequestError("holds turns of which two in a row are by the same side, expected them to alternate")
    return ChatPrompt(chat[last][1], tuple(chat[:last]), len(turns) > len(chat), len(chat) > last + 1)


def _turn(member: Any) -> Turn:
    if not isinstance(member, Mapping):
        raise _NotARequestError(f"holds a list with {type(member).__name__}, expected chat turns")
    name = member.get("role", member.get("from"))
    if name is None:
        keys = ", ".join(list(map(str, member))[:4])
        raise _NotARequestError(
            f"holds an object with {keys[:80] or 'nothing'}, expected text, or chat turns with role and content (a "
            "file that pandas wrote: to_json(orient='records'))"
        )
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise _NotARequestError(f"holds a turn by '{str(name)[:40]}', expected {', '.join(sorted(_ROLES))}")
    content = member.get("content", member.get("value"))
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise _NotARequestError("holds a turn with parts that are no text")
        content = "\n\n".join(map(str, texts))
    if not isinstance(content, str):
        raise _NotARequestError(f"holds a turn whose content is {type(content).__name__}, expected text")
    return role, _whole(content)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NotARequestError("holds half a character (a lone surrogate)") from None
    return text.strip()
