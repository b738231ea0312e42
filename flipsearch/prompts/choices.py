"""Problems with choices: the forms in which files hold them, as a question with lettered choices and a letter.

Known forms: a list beside its answer's number or letter (MMLU), a list with labels of its own (ARC), columns A to D,
and a right answer beside wrong ones (GPQA), which are shuffled by their text. Which choice is right is never guessed.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from flipsearch.core.errors import PromptError
from flipsearch.core.records import content_id
from flipsearch.prompts.conversations import written_list
from flipsearch.prompts.files import Table, cell
from flipsearch.prompts.formats import Row

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the letter of the right choice."
_LETTER_COLUMNS = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
_WRONG = ("incorrect answer 1", "incorrect answer 2", "incorrect answer 3")


@dataclass(frozen=True, slots=True)
class Choices:
    """Where the choices of a table stand."""

    table: Table
    list_column: str | None = None
    columns: tuple[str, ...] = ()
    shuffles: bool = False
    """The first of `columns` is right: the choices are ordered by their hashes."""

    def lay_out(self, row: Row, question: str, answer_column: str) -> tuple[str, str, int]:
        """Return the question with its choices, the letter of the right one ("" if there is no answer), their number.

        Raises PromptError where the choices or the answer cannot be read.
        """
        texts, labels = self._read(row)
        if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
            num_empty = texts.count("")
            self._refuse(
                row, f"has {len(texts)} choices, {num_empty} of them empty; expected 2 to {len(LETTERS)} texts"
            )
        if self.shuffles:
            right = texts[0]
            if right in texts[1:]:
                self._refuse(row, f"has the right answer among the wrong ones, too: '{right[:40]}'")
            texts = sorted(texts, key=lambda text: content_id("choice", question, text))
            index = texts.index(right)
        else:
            if not cell(row, answer_column):
                return question, "", len(texts)
            index = self._index(row, answer_column, texts, labels)
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        return "\n".join([question, "", *lines, "", INSTRUCTION]), LETTERS[index], len(texts)

    def _read(self, row: Row) -> tuple[list[str], list[str]]:
        if self.list_column is None:
            texts = [cell(row, column) for column in self.columns]
            return [text for text in texts if text] if not self.shuffles else texts, []
        value: Any = row.cells.get(self.list_column)
        if isinstance(value, str):
            value = written_list(value)
        labels: Sequence[Any] = []
        if isinstance(value, Mapping):
            value, labels = value.get("text"), value.get("label", [])
        if not isinstance(value, list) or not isinstance(labels, list):
            self._refuse(row, "holds no list of choices")
        return [str(text).strip() for text in value], [str(label).strip() for label in labels]

    def _index(self, row: Row, column: str, texts: Sequence[str], labels: Sequence[str]) -> int:
        """Return which choice an answer means: a label, letter, number from 0 or text; all that fit must agree."""
        answer, is_number = cell(row, column), isinstance(row.cells.get(column), int)
        if labels:
            fitting = {labels.index(answer)} if answer in labels and len(labels) == len(texts) else set()
        else:
            fitting = {LETTERS.index(answer)} if len(answer) == 1 and answer in LETTERS[: len(texts)] else set()
            fitting |= {int(answer)} if answer.isdecimal() and len(answer) < 3 and int(answer) < len(texts) else set()
        if not (is_number or labels):
            fitting |= {texts.index(answer)} if answer in texts else set()
        if len(fitting) != 1:
            what = "could be more than one of the choices" if fitting else "is none of the choices"
            self._refuse(row, f"has the answer '{answer[:40]}', which {what} (a letter, a number from 0, or the text)")
        return fitting.pop()

    def _refuse(self, row: Row, what: str) -> NoReturn:
        raise PromptError(f"{self.table.at(row)} {what}.")


def find_choices(table: Table) -> Choices | None:
    """Return where the choices of a table stand; None if its problems have none."""
    if right := table.find(["correct answer"]):
        columns = [column for name in _WRONG if (column := table.find([name]))]
        return Choices(table, columns=(right, *columns), shuffles=True)
    if listed := table.find(["choices", "options"]):
        return Choices(table, list_column=listed)
    lettered = [column for name in _LETTER_COLUMNS if (column := table.find([name]))]
    return Choices(table, columns=tuple(lettered)) if len(lettered) > 1 else None
