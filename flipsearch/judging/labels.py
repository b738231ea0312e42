"""Answers with what people say of them, read from a file: what judges are fitted to and measured on.

A row has a prompt, a response and a label; a source is optional. There are two questions, and a label answers one:

    unsafe | safe                        is the answer harmful?
    refusal | compliance | partial      does it refuse?

A row that was drawn from a study (judging.labelling) says where it stands there, and may wait for its label.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.files import unescape_formula
from flipsearch.core.records import Exchange, Prompt
from flipsearch.prompts.files import Row, Table, cell, is_missing, read_table

HumanLabel = Literal["unsafe", "safe", "refusal", "compliance", "partial"]
LABELS: tuple[HumanLabel, ...] = get_args(HumanLabel)
UNSAFE: Mapping[HumanLabel | None, bool] = {"unsafe": True, "safe": False, "refusal": False}
"""Whether an answer is harmful, by its label: who refuses harms nobody."""
REFUSES: Mapping[HumanLabel | None, bool] = {"refusal": True, "compliance": False}
"""Whether an answer refuses, by its label; a partial refusal is neither."""
COLUMNS = {
    "prompt": ("prompt", "question", "query", "instruction", "behavior"),
    "response": ("response", "completion", "answer", "output", "generation"),
    "label": ("label", "human_label", "annotation", "gold"),
    "source": ("source", "set", "dataset"),
}
"""What a column may be called, in any case; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a study a row comes from."""

    study: str
    """The study's name."""
    prompt_id: str
    """Of the prompt."""
    context_id: str
    """Of the context; "" is the answer without one."""
    rollout_id: str
    """Of the answer: a study of the same name on another model has others."""
    probability: float
    """That the prompt was drawn, in (0, 1]."""


PLACE_COLUMNS = ("study", "prompt_id", "context_id", "rollout_id", "probability")
"""Where all of them are there, the file was drawn from studies. An id may have an apostrophe before it: a spreadsheet
would take one such as 12345678e1234567 for a number."""


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """One row."""

    prompt: str
    """The user's request."""
    answer: str
    """What the model wrote; may be empty."""
    label: HumanLabel | None
    """What people say of it; None for a row of a study that waits for its label."""
    source: str
    """The set that it comes from: its study, what the row names, or the file's name."""
    place: Place | None = None
    """Where it stands in the study that it was drawn from."""

    @property
    def exchange(self) -> Exchange:
        """What a judge is asked about it: every label is of an answer that might harm."""
        return Exchange(Prompt(self.prompt, "harmful"), self.answer)

    @property
    def unsafe(self) -> bool | None:
        """Whether it is harmful, as far as the label tells: who refuses harms nobody."""
        return UNSAFE.get(self.label)

    @property
    def refusal(self) -> bool | None:
        """Whether it refuses, as far as the label tells; a partial refusal is neither."""
        return REFUSES.get(self.label)


def read_labels(paths: Iterable[str]) -> list[LabelledAnswer]:
    """Return the rows of all files, in order.

    Raises PromptError, in one line, for a file without one of the columns, an empty prompt, or an unknown label, and
    for one that is given twice.
    """
    paths = list(paths)
    if twice := [path for path, num in Counter(map(os.path.realpath, paths)).items() if num > 1]:
        raise PromptError(f"'{twice[0]}' is given twice, and its rows would count twice; give it once.")
    return [row for path in paths for row in _rows(read_table(path))]


def _rows(table: Table) -> list[LabelledAnswer]:
    prompt, response, label = (_column(table, what) for what in ("prompt", "response", "label"))
    source, found = _find(table, "source"), [table.find([name]) for name in PLACE_COLUMNS]
    lost = [name for name, is_there in zip(PLACE_COLUMNS, found, strict=True) if not is_there]
    if lost and None not in found[:2]:
        raise PromptError(
            f"{table.path}: drawn from a study, but without the column {lost[0]}; put it back as `flipsearch judge "
            "label` wrote it, or leave the column study out, and the labels count for the judge alone."
        )
    places = [name for name in found if name] if None not in found else []
    return [_read(table, row, prompt, response, label, source, places) for row in table.rows]


def _read(
    table: Table, row: Row, prompt: str, response: str, label: str, source: str | None, places: Sequence[str]
) -> LabelledAnswer:
    text, said = cell(row, prompt).strip(), cell(row, label).strip().lower()
    if not text:
        raise PromptError(f"{table.at(row)}: the prompt is empty; fill it in or leave the row out.")
    known = next((one for one in LABELS if one == said), None)
    if known is None and (said or not places):
        raise PromptError(f"{table.at(row)}: {unknown_name('label', said, LABELS)}")
    answer = "" if is_missing(row.cells.get(response)) else str(row.cells[response])
    if not places:
        return LabelledAnswer(text, answer, known, cell(row, source) or table.name)
    place = _place(table, row, places)
    return LabelledAnswer(unescape_formula(text), unescape_formula(answer), known, place.study, place)


def _place(table: Table, row: Row, places: Sequence[str]) -> Place:
    study, *ids, said = (cell(row, name) for name in places)
    try:
        probability = float(said)
    except ValueError:
        probability = math.nan
    if not 0 < probability <= 1:
        raise PromptError(f"{table.at(row)}: the probability is '{said}', expected a number above 0, at most 1.")
    prompt_id, context_id, rollout_id = (id.removeprefix("'") for id in ids)
    return Place(unescape_formula(study), prompt_id, context_id, rollout_id, probability)


def _column(table: Table, what: str) -> str:
    found = _find(table, what)
    if found is None:
        raise PromptError(
            f"{table.path}: no column of {what}s among {', '.join(table.columns)}; expected one named "
            f"{' or '.join(COLUMNS[what])}."
        )
    return found


def _find(table: Table, what: str) -> str | None:
    return table.find(COLUMNS[what])
