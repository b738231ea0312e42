"""Interprets the labels of a prompt file: the kind of each row, whether it is borderline, and its split if fixed.

An unknown label is an error: a row of the wrong kind would get the wrong context in training. A label beside an answer
speaks of the answer unless its name says that it is the prompt's, and is never taken for the prompt's.
"""

import re
from collections.abc import Mapping
from typing import NoReturn, get_args

from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.records import SPLITS, Kind, Split
from flipsearch.prompts.files import Table, cell, plain_name
from flipsearch.prompts.formats import Row
from flipsearch.prompts.known_sets import HARMFUL_OR_NOT, LEFT_OUT, KnownSet, Routed

PROMPT_LABELS = ("kind", "data_type", "prompt_label", "prompt_harm_label")
"""Columns that label the prompt, whatever stands beside it."""
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
"""Names of answers, whoever gave them: target_response, gpt4_answer, response_1."""
_OF_ANSWERS = re.compile("response|completion|answer|output|generation|reply|label|safe")
"""Parts of the names of columns that are or that judge an answer."""
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def plain_flag(value: str) -> str:
    """Return a flag in lower case, without the ".0" that a column of numbers with gaps gets."""
    lower = value.lower()
    return lower.removesuffix(".0") if lower in ("1.0", "0.0") else lower


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
            for name, meanings in (self.known.labels or {}).items():
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
        """Return the label as the file spells it and the kind that it means.

        Raises PromptError for a label that is unknown, and for one that contradicts another or what the user says.
        """
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
            flag = _FLAGS.get(plain_flag(value))
            if flag is None:
                raise PromptError(
                    f"{self.table.at(row)}: '{value[:80]}' in column '{self.flag_column}', expected 1 or 0 (true, "
                    "false, yes, no)."
                )
            means_harmful = flag is FLAG_COLUMNS[plain_name(self.flag_column)]
            self._check_other_labels(row, self.flag_column, "harmful" if means_harmful else "benign")
            return f"{self.flag_column}={value}", "harmful" if means_harmful else "benign"
        if self.kind == "harmful" and self.known and self.known.only_harmful:
            name, wanted = self.known.only_harmful
            if (value := cell(row, self.table.find([name]))).lower() != wanted.lower():
                return value[:80], LEFT_OUT
        assert self.kind is not None  # __init__ refuses a table with neither
        self._check_unused_columns(row, self.kind)
        return self.known.name if self.known and self.known.kind else f"given as {self.kind}", self.kind

    def _unknown(self, row: Row, column: str, label: str) -> NoReturn:
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
            if name in FLAG_COLUMNS:
                flag = _FLAGS.get(value)
                meaning = None if flag is None else "harmful" if flag is FLAG_COLUMNS[name] else "benign"
            else:
                meaning = HARMFUL_OR_NOT.get(value.replace(" ", "_"))
            if other != column and kind and meaning not in (None, kind):
                raise PromptError(
                    f"{self.table.at(row)}: '{column}' says {kind}, '{other}' says {meaning}: drop or rename the one "
                    "that does not label the prompt."
                )

    def _check_unused_columns(self, row: Row, kind: Kind) -> None:
        """Raise PromptError if a column that is not used has the word or flag of another kind than the user says."""
        for column in [] if self.known else self._other_columns:
            value = plain_flag(cell(row, column))
            meaning = HARMFUL_OR_NOT.get(value.replace(" ", "_").replace("-", "_"))
            if plain_name(column) in DOUBT_COLUMNS and value in _FLAGS:
                meaning = "harmful" if _FLAGS[value] else "benign"
            if meaning not in (None, kind):
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
