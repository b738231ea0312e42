"""Reasoning problems: the built-in set and the user's files, as questions with the answer that counts as right.

Files are csv, tsv, jsonl or parquet, local or hf://. A question is asked as it is written. Of an answer that shows its
working before "####" (GSM8K), what stands behind the mark counts; any other answer is taken whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.records import Prompt, content_id
from flipsearch.prompts.files import FILE_TYPES, Row, Table, cell, read_table, text_cell, whole_text

SET_FOLDER = Path(__file__).parent / "problem_sets"
QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer")
ANSWER_MARK = "####"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its right answer."""

    question: str
    """As it is asked. Hostile text, like any prompt."""
    answer: str
    """The final answer: a number, or an expression in LaTeX."""
    set_name: str
    """The set or file it came from."""
    place: str
    """File and line, for messages."""

    @property
    def prompt(self) -> Prompt:
        """The prompt that asks it."""
        return Prompt(self.question, "benign", category="reasoning", source=self.set_name)


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems without repeats; every prefix is a fair sample of them."""

    name: str
    """The set's name, or the file's."""
    problems: tuple[Problem, ...]
    """In an order by content hash, whatever the order of the file."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the file was read."""

    @property
    def problems_id(self) -> str:
        """Content hash of all questions and answers."""
        return content_id("problems", [[problem.question, problem.answer] for problem in self.problems])


def load_problems(spec: str) -> ProblemSet:
    """Return a built-in problem set, or the problems of a file.

    Raises PromptError for an unknown set, a file without usable columns, or one question with two answers.
    """
    built_in = _set_files()
    if spec in built_in:
        return _from_table(read_table(str(built_in[spec])), spec)
    if "." not in spec and "/" not in spec:
        todo = f"A file needs an ending: .{', .'.join(FILE_TYPES)}."
        raise PromptError(unknown_name("problem set", spec, built_in, todo))
    table = read_table(spec)
    return _from_table(table, table.name)


def list_problem_sets() -> dict[str, int]:
    """Return the built-in problem sets with their numbers of problems."""
    return {name: len(load_problems(name).problems) for name in _set_files()}


def _set_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(SET_FOLDER.glob("*.csv"))}


def _from_table(table: Table, name: str) -> ProblemSet:
    question_column = _column(table, "questions", QUESTION_COLUMNS)
    answer_column = _column(table, "answers", ANSWER_COLUMNS)
    found: dict[str, Problem] = {}
    num_empty = num_repeats = 0
    for row in table.rows:
        question, answer = text_cell(table, row, question_column), _final_answer(table, row, answer_column)
        if not (question and answer):
            num_empty += 1
            continue
        num_repeats += question in found
        known = found.setdefault(question, Problem(question, answer, name, table.at(row)))
        if known.answer != answer:
            raise PromptError(f"{table.at(row)}: the question of {known.place} again, with another answer.")
    if not found:
        raise PromptError(f"{table.path}: no row has both a question ('{question_column}') and an answer.")
    problems = sorted(found.values(), key=lambda problem: content_id("order", problem.question))
    return ProblemSet(name, tuple(problems), tuple(_notes(name, num_empty, num_repeats)))


def _column(table: Table, what: str, names: Sequence[str]) -> str:
    if (found := table.find(names)) is None:
        has = ", ".join(table.columns)
        raise PromptError(f"{table.path} has no column of {what} ({', '.join(names)}). It has: {has}. Rename one.")
    return found


def _final_answer(table: Table, row: Row, column: str) -> str:
    value = row.cells.get(column)
    if isinstance(value, list | dict | bool):
        raise PromptError(f"{table.at(row)}: column '{column}' holds {type(value).__name__}, expected one answer.")
    _, mark, final = (text := whole_text(table, row, column, cell(row, column))).rpartition(ANSWER_MARK)
    if mark and not final.strip():
        raise PromptError(f"{table.at(row)}: nothing stands behind the last {ANSWER_MARK} of column '{column}'.")
    return final.strip() if mark else text


def _notes(name: str, num_empty: int, num_repeats: int) -> list[str]:
    notes = [f"{name}: {num_repeats} repeated problems left out"] if num_repeats else []
    return notes + ([f"{name}: {num_empty} rows without a question or an answer left out"] if num_empty else [])
