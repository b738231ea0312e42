"""What a row of a prompt file says: its request, its kind, whether it is borderline, and its split if fixed.

An unknown label is an error: a row of the wrong kind would get the wrong context in training. A label beside an answer
speaks of the answer unless its name says that it is the prompt's, and is never taken for the prompt's.

A cell holds a text, or chat turns of which the last one by the user is the prompt: `{"role": "user", "content": …}`
(messages), `{"from": "human", "value": …}` (conversations), a content of text parts, a list with one text (turns), a
transcript ("Human: … Assistant: …", HH-RLHF; "User: … Agent: …", Aegis), a text in the frame "### Instruction: … ###
Response:" (ALERT). In csv such a list stands as text, in JSON or as Python writes it; one that cannot be read is never
taken for a prompt.
"""

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, get_args

from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.files import storable
from flipsearch.core.records import SPLITS, Kind, Split, Turn
from flipsearch.prompts.files import Table, cell, is_missing, plain_name, whole_text
from flipsearch.prompts.formats import Row
from flipsearch.prompts.known_sets import HARMFUL_OR_NOT, LEFT_OUT, KnownSet, Routed

LIST_COLUMNS = ("turns", "messages", "conversations", "conversation")
"""Columns that hold lists, also where the file could only write them as text."""
_ROLES = {"user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLES |= {"model": "assistant", "chatbot": "assistant", "bot": "assistant", "ai": "assistant"}
_ROLES |= {"agent": "assistant"}
_ROLES |= {"system": "system", "developer": "system"}
_TOOLS = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation")
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
    """It was wrapped in the frame of another model's prompts."""


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
    with warnings.catch_warnings(action="ignore"):  # Python warns of odd escapes and numbers in what it parses
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
        raise _NotARequestError("holds turns that do not alternate, expected user, assistant, user, …")
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
    if name in _TOOLS or member.get("tool_calls"):
        raise _NotARequestError("holds turns of tools, which no prompt has here: remove such rows")
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
    if storable(text) != text:
        raise _NotARequestError("holds half a character (a lone surrogate)")
    return text.strip()


PROMPT_LABELS = ("kind", "data_type", "prompt_label", "prompt_harm_label")
"""Columns that label the prompt, whatever the other columns are."""
LABEL_COLUMNS = ("label", *PROMPT_LABELS)
FLAG_COLUMNS = {"harmful": True, "is_harmful": True, "unsafe": True, "is_unsafe": True}
FLAG_COLUMNS |= {"toxic": True, "is_toxic": True, "malicious": True, "is_malicious": True}
FLAG_COLUMNS |= {"benign": False, "is_benign": False, "safe": False, "is_safe": False}
"""Columns of 0 and 1 named after the meaning of 1; True if that is harmful."""
DOUBT_COLUMNS = ("jailbreak", "is_jailbreak", "flagged", "is_flagged")
"""Columns of 0 and 1 that label no harm, and yet contradict what the user says of a file."""
ANSWER_COLUMNS = (
    "response", "completion", "answer", "output", "model_output", "model_response", "generation", "reply",
    "response_0", "chosen", "assistant", "responses", "completions",
)  # fmt: skip
_ANSWERS = re.compile(
    r"(?:.*[ _-])?(?:response|completion|answer|output|generation|generated_text|reply)s?(?:[ _-]?\d+)?"
)
"""Names of columns of answers: target_response, gpt4_answer, response_1."""
_OF_ANSWERS = re.compile("response|completion|answer|output|generation|reply|label|safe")
"""Parts of the names of columns that are or that judge an answer."""
_FLAGS = dict.fromkeys(("1", "true", "yes", "t", "y"), True) | dict.fromkeys(("0", "false", "no", "f", "n"), False)


def plain_flag(value: str) -> str:
    """Return a flag in lower case, without the ".0" that a column of numbers with gaps gets."""
    lower = value.lower()
    return lower.removesuffix(".0") if lower in ("1.0", "0.0") else lower


def _flag_kind(column: str, value: str) -> Kind | None:
    """Return what a flag in a column of this plain name means; None if the value is no flag."""
    flag = _FLAGS.get(value)
    return None if flag is None else "harmful" if flag is FLAG_COLUMNS.get(column, True) else "benign"


def _word_kind(value: str) -> Routed | None:
    return HARMFUL_OR_NOT.get(value.replace(" ", "_").replace("-", "_"))


class LabelRouter:
    """Finds the label columns of a table, and reads kind, borderline and split of its rows.

    `kind` is what the user says that the file holds; it routes the rows of a table without labels. `known` is the
    public set that the table is of. Raises PromptError for a table without labels if `kind` is None.
    """

    def __init__(self, table: Table, kind: Kind | None, known: KnownSet | None = None) -> None:
        self.table = table
        self.known = known
        others = [name for name in map(plain_name, table.columns) if _ANSWERS.fullmatch(name)]
        self.answer_column = table.find([*ANSWER_COLUMNS, *others])
        self._other_columns = [
            name for name in table.columns if not _OF_ANSWERS.search(plain_name(name)) and name != self.answer_column
        ]
        self.notes: list[str] = []
        self.meanings: Mapping[str, Routed] = HARMFUL_OR_NOT
        self.flag_column: str | None = None
        self.label_column = self._find_label_column()
        fixed = known.kind if known else None
        by_name = known.kind_of(table.name) if known else None
        self.kind = fixed or kind or by_name
        names = () if known else PROMPT_LABELS if self.answer_column else (*LABEL_COLUMNS, *FLAG_COLUMNS)
        self._other_labels = [name for name in table.columns if plain_name(name) in names]
        self.borderline_column = table.find(["borderline"])
        self.group_column = table.find(["group", *([known.group] if known and known.group else [])])
        self.split_column = table.find(["split"])
        if self.split_column and not any(cell(row, self.split_column) in SPLITS for row in table.rows):
            self.split_column = None
        if not (self.kind or self.label_column or self.flag_column or (known and known.route)):
            raise PromptError(
                f"{table.path} has no label column of its prompts ({', '.join(LABEL_COLUMNS)}, "
                f"{', '.join(FLAG_COLUMNS)}). It has: {', '.join(table.columns)}. {''.join(self.notes)}"
                "Give it with --harmful or with --benign instead."
            )
        if known and fixed:
            self.notes.append(f"read as {known.name}, all {fixed}")

    def _find_label_column(self) -> str | None:
        """Return the column of labels, and set what they mean; a column of flags is set instead if there is none."""
        if self.known and (self.known.kind or self.known.labels or self.known.route or self.known.kind_by_name):
            for name, meanings in self.known.labels.items():
                # A column that makes the set what it is labels the prompt, even beside an answer.
                is_answers = self.answer_column and name == "label" and name not in self.known.columns
                if not is_answers and (column := self.table.find([name])):
                    self.meanings = meanings
                    return column
            return None
        if self.answer_column is None:
            if (column := self.table.find(LABEL_COLUMNS)) is None:
                self.flag_column = self.table.find(tuple(FLAG_COLUMNS))
            return column
        column = self.table.find(PROMPT_LABELS)
        if column is None and (of_answer := self.table.find(("label", *FLAG_COLUMNS))):
            self.notes.append(
                f"'{of_answer}' stands beside '{self.answer_column}', so it labels answers and is not used (if it "
                "labels prompts, name it prompt_label). "
            )
        return column

    def route(self, row: Row) -> tuple[str, Routed]:
        """Return a label as spelled and its kind; PromptError if it is unknown, or contradicts another."""
        if self.known and self.known.route:
            return self.known.route({plain_name(name): cell(row, name) for name in self.table.columns})
        if self.label_column:
            label = cell(row, self.label_column)
            if not label and plain_name(self.label_column) == "prompt_harm_label":  # published with gaps
                return "no label", LEFT_OUT
            plain = plain_flag(label).replace(" ", "_")
            kind = self.meanings.get(plain) or self.meanings.get(plain.replace("-", "_"))
            self._check_other_labels(row, self.label_column, kind)
            return label or "no label", kind or self._unknown(row, self.label_column, label)
        if self.flag_column:
            value = cell(row, self.flag_column)
            kind = _flag_kind(plain_name(self.flag_column), plain_flag(value))
            if kind is None:
                raise PromptError(
                    f"{self.table.at(row)}: '{value[:80]}' in column '{self.flag_column}', expected 1 or 0 (true, "
                    "false, yes, no)."
                )
            self._check_other_labels(row, self.flag_column, kind)
            return f"{self.flag_column}={value}", kind
        if self.kind == "harmful" and self.known and self.known.only_harmful:
            name, wanted = self.known.only_harmful
            if (value := cell(row, self.table.find([name]))).lower() != wanted.lower():
                return value[:80], LEFT_OUT
        assert self.kind is not None  # __init__ refuses a table with neither
        self._check_unused_columns(row, self.kind)
        return self.known.name if self.known and self.known.kind else f"given as {self.kind}", self.kind

    def _unknown(self, row: Row, column: str, label: str) -> NoReturn:
        if not label:
            raise PromptError(f"{self.table.at(row)}: no label in column '{column}': fill it in, or remove such rows.")
        if plain_flag(label) in _FLAGS:
            todo = f"Rename the column to what 1 means: {', '.join(FLAG_COLUMNS)}."
        else:
            known = ", ".join(name for name in self.meanings if name)
            todo = f"Expected one of {known}; rename or drop the column if it means something else."
        raise PromptError(f"{self.table.at(row)}: unknown label '{label[:80]}' in column '{column}'. {todo}")

    def _check_other_labels(self, row: Row, column: str, kind: Routed | None) -> None:
        """Raise PromptError if another label of the prompt says something else than the one in `column`."""
        for other in self._other_labels:
            name, value = plain_name(other), plain_flag(cell(row, other))
            meaning = _flag_kind(name, value) if name in FLAG_COLUMNS else _word_kind(value)
            if other != column and kind and meaning not in (None, kind):
                raise PromptError(
                    f"{self.table.at(row)}: '{column}' says {kind}, '{other}' says {meaning}: drop or rename the one "
                    "that does not label the prompt."
                )

    def _check_unused_columns(self, row: Row, kind: Kind) -> None:
        """Raise PromptError if a column that is not used has the word or flag of another kind than the user says."""
        for column in [] if self.known else self._other_columns:
            name, value = plain_name(column), plain_flag(cell(row, column))
            doubt = _flag_kind(name, value) if name in DOUBT_COLUMNS else None
            if (doubt or _word_kind(value)) not in (None, kind):
                raise PromptError(
                    f"{self.table.at(row)}: given as {kind}, but column '{column}' says '{cell(row, column)[:80]}': "
                    "name it prompt_label if it labels the prompts (harmful, benign), drop it if not."
                )

    def is_borderline(self, row: Row, kind: Kind) -> bool:
        """Return whether a benign row only looks harmful."""
        if self.borderline_column is None:
            return bool(self.known and self.known.borderline) and kind == "benign"
        value = plain_flag(cell(row, self.borderline_column))
        if value and value not in _FLAGS:
            raise PromptError(f"{self.table.at(row)}: borderline is '{value[:80]}', expected 0 or 1.")
        if (is_borderline := _FLAGS.get(value, False)) and kind == "harmful":
            raise PromptError(f"{self.table.at(row)}: a harmful prompt is marked borderline; only benign ones can be.")
        return is_borderline

    def split(self, row: Row) -> Split | None:
        """Return the split that the file fixes for this row, if any."""
        value = cell(row, self.split_column)
        if value and value not in SPLITS:
            raise PromptError(f"{self.table.at(row)}: {unknown_name('split', value[:80], SPLITS)}")
        return next((split for split in get_args(Split) if split == value), None)
