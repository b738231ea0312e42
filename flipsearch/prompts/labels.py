"""Interprets the labels of a prompt file: the kind of each row, whether it is borderline, and its split if fixed.

An unknown label is an error: a row of the wrong kind would get the wrong context in training.
"""

from collections.abc import Mapping
from typing import NoReturn, get_args

from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.records import SPLITS, Kind, Split
from flipsearch.prompts.files import Row, Table, cell

LABEL_COLUMNS = ("label", "kind", "data_type", "prompt_label", "prompt_harm_label")
FLAG_COLUMNS = {"harmful": True, "is_harmful": True, "unsafe": True, "is_unsafe": True}
FLAG_COLUMNS |= {"benign": False, "is_benign": False, "safe": False, "is_safe": False}
"""Columns of 0 and 1 named after the meaning of 1; True if that is harmful."""
KIND_OF_LABEL: Mapping[str, Kind] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "vanilla_harmful": "harmful",
    "adversarial_harmful": "harmful",
    "benign": "benign",
    "safe": "benign",
    "unharmful": "benign",
    "vanilla_benign": "benign",
    "adversarial_benign": "benign",
}
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
# The columns that identify XSTest; its safe rows are there because they look harmful.
_XSTEST_COLUMNS = {"type", "label", "focus"}


class LabelRouter:
    """Finds the label columns of a table, and reads kind, borderline and split of its rows.

    `kind` is what the user says that the file holds; it routes the rows of a table without labels.
    Raises PromptError for a table without labels if `kind` is None.
    """

    def __init__(self, table: Table, kind: Kind | None) -> None:
        self.table = table
        self.kind = kind
        self.label_column = table.find(LABEL_COLUMNS)
        self.flag_column = None if self.label_column else table.find(tuple(FLAG_COLUMNS))
        self.borderline_column = table.find(["borderline"])
        self.group_column = table.find(["group"])
        self.is_xstest = {column.lower() for column in table.columns} >= _XSTEST_COLUMNS
        self.split_column = table.find(["split"])
        if self.split_column and not any(cell(row, self.split_column) in SPLITS for row in table.rows):
            self.split_column = None
        if not (kind or self.label_column or self.flag_column):
            raise PromptError(
                f"{table.path} has no label column ({', '.join(LABEL_COLUMNS)}, {', '.join(FLAG_COLUMNS)}). "
                f"It has: {', '.join(table.columns)}. Give it as a file of harmful or of benign prompts instead."
            )

    def route(self, row: Row) -> tuple[str, Kind]:
        """Return the label as the file spells it and the kind that it means."""
        if self.label_column:
            label = cell(row, self.label_column)
            kind = KIND_OF_LABEL.get(label.lower().replace(" ", "_").replace("-", "_"))
            return label, kind or self._unknown(row, self.label_column, label)
        if self.flag_column:
            value = cell(row, self.flag_column)
            flag = _FLAGS.get(value.lower())
            if flag is None:
                self._unknown(row, self.flag_column, value)
            means_harmful = flag is FLAG_COLUMNS[self.flag_column.strip().lower()]
            return f"{self.flag_column}={value}", "harmful" if means_harmful else "benign"
        assert self.kind is not None  # __init__ refuses a table with neither
        return f"given as {self.kind}", self.kind

    def _unknown(self, row: Row, column: str, label: str) -> NoReturn:
        if label.lower() in _FLAGS:
            todo = f"Rename the column to what 1 means: {', '.join(FLAG_COLUMNS)}."
        else:
            todo = f"Expected one of {', '.join(KIND_OF_LABEL)}; rename or drop the column if it means something else."
        raise PromptError(f"{self.table.at(row)}: unknown label '{label[:80]}' in column '{column}'. {todo}")

    def is_borderline(self, row: Row, kind: Kind) -> bool:
        """Return whether a benign row only looks harmful."""
        if self.borderline_column is None:
            return self.is_xstest and kind == "benign"
        value = cell(row, self.borderline_column).lower()
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
