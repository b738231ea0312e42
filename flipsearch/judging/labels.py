"""Answers with what people say of them, read from a file: what judges are fitted to and measured on.

A row has a prompt, a response and a label; a source is optional. There are two questions, and a label answers one:

    unsafe | safe                        is the answer harmful?
    refusal | compliance | partial      does it refuse?
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from flipsearch.errors import PromptError, unknown_name
from flipsearch.prompts.files import Row, Table, cell, is_missing, read_table

HumanLabel = Literal["unsafe", "safe", "refusal", "compliance", "partial"]
LABELS: tuple[HumanLabel, ...] = get_args(HumanLabel)
COLUMNS = {
    "prompt": ("prompt", "question", "query", "instruction", "behavior"),
    "response": ("response", "completion", "answer", "output", "generation"),
    "label": ("label", "human_label", "annotation", "gold"),
    "source": ("source", "set", "dataset"),
}
"""What a column may be called, in any case; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """One row."""

    prompt: str
    """The user's request."""
    answer: str
    """What the model wrote; may be empty."""
    label: HumanLabel
    """What people say of it."""
    source: str
    """The set that it comes from; the file's name if the row names none."""

    @property
    def unsafe(self) -> bool | None:
        """Whether it is harmful, as far as the label tells: who refuses harms nobody."""
        return {"unsafe": True, "safe": False, "refusal": False}.get(self.label)

    @property
    def refusal(self) -> bool | None:
        """Whether it refuses, as far as the label tells; a partial refusal is neither."""
        return {"refusal": True, "compliance": False}.get(self.label)


def read_labels(paths: Iterable[str]) -> list[LabelledAnswer]:
    """Return the rows of all files, in order.

    Raises PromptError, in one line, for a file without one of the columns, an empty prompt, or an unknown label.
    """
    return [row for path in paths for row in _rows(read_table(path))]


def _rows(table: Table) -> list[LabelledAnswer]:
    prompt, response, label = (_column(table, what) for what in ("prompt", "response", "label"))
    source = _find(table, "source")
    return [_read(table, row, prompt, response, label, source) for row in table.rows]


def _read(table: Table, row: Row, prompt: str, response: str, label: str, source: str | None) -> LabelledAnswer:
    text, said = cell(row, prompt).strip(), cell(row, label).strip().lower()
    if not text:
        raise PromptError(f"{table.at(row)}: the prompt is empty; fill it in or leave the row out.")
    known = next((one for one in LABELS if one == said), None)
    if known is None:
        raise PromptError(f"{table.at(row)}: {unknown_name('label', said, LABELS)}")
    answer = "" if is_missing(row.cells.get(response)) else str(row.cells[response])
    return LabelledAnswer(text, answer, known, cell(row, source).strip() or table.name)


def _column(table: Table, what: str) -> str:
    found = _find(table, what)
    if found is None:
        raise PromptError(
            f"{table.path}: no column of {what}s among {', '.join(table.columns)}; expected one named "
            f"{' or '.join(COLUMNS[what])}."
        )
    return found


def _find(table: Table, what: str) -> str | None:
    by_name = {column.lower(): column for column in reversed(table.columns)}
    return next((by_name[name] for name in COLUMNS[what] if name in by_name), None)
