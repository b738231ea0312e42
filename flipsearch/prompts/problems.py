"""Reasoning problems: the built-in sets and the user's files, as questions with a reference answer.

Files are those of prompt sets. A question is used as it is written. Of an answer that shows its working before "####"
(GSM8K), the part after the mark counts; any other answer is taken whole. Problems with choices (MMLU, ARC, GPQA) are
asked with them, lettered, and their answer is a letter. A text beside the question (RACE, DROP) is asked with it.

A new built-in set is one file, problem_sets/NAME.csv with the columns question and answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.core.errors import PromptError
from flipsearch.core.records import Prompt, content_id
from flipsearch.prompts.choices import find_choices
from flipsearch.prompts.files import COMPANION_COLUMNS, Table, built_in_files, cell, read_set, text_cell, whole_text
from flipsearch.prompts.formats import Row

FOLDER = "problem_sets"
QUESTION_COLUMNS = ("question", "problem", "prompt", "question_stem", "query")
ANSWER_COLUMNS = (
    "answer", "final_answer", "answerkey", "correct_answer", "answer_idx", "correct_option", "correct", "cop",
    "answer_number", "final_ans",
)  # fmt: skip
ANSWER_MARK = "####"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer."""

    question: str
    """Hostile text, like any prompt."""
    answer: str
    """A number, or an expression in LaTeX."""
    set_name: str
    place: str
    """File and line, for messages."""
    num_choices: int = 0
    """More than 0 if the answer is one of the letters from A on."""

    @property
    def prompt(self) -> Prompt:
        """The question as a prompt."""
        return Prompt(self.question, "benign", category="reasoning", source=self.set_name)


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems without repeats; every prefix is a fair sample of them."""

    name: str
    problems: tuple[Problem, ...]
    """Ordered by content hash, whatever the order of the file."""
    notes: tuple[str, ...] = ()

    @property
    def problems_id(self) -> str:
        """Content hash of all questions and answers."""
        return content_id("problems", [[problem.question, problem.answer] for problem in self.problems])


def load_problems(spec: str) -> ProblemSet:
    """Return a built-in problem set, or the problems of a file.

    Raises PromptError for an unknown set, a file without usable columns, or one question with two answers.
    """
    built_in = built_in_files(FOLDER)
    table = read_set(spec, built_in, "problem set")
    name = spec if spec in built_in else table.name
    if table.find(["task_id"]) and (tests := table.find(["test", "test_list"])):
        raise PromptError(f"{table.path} holds programming problems ('{tests}'): programs are not run here.")
    question_column = _column(table, "questions", QUESTION_COLUMNS)
    choices = find_choices(table, ANSWER_COLUMNS)
    answer_column = "" if choices and choices.shuffles else _column(table, "answers", ANSWER_COLUMNS)
    problems: dict[str, Problem] = {}
    passage_column = table.find(COMPANION_COLUMNS)
    num_empty = num_repeats = num_passages = 0
    for row in table.rows:
        question, num_choices = text_cell(table, row, question_column), 0
        if question and passage_column and (passage := text_cell(table, row, passage_column)):
            num_passages += 1
            question = f"{passage}\n\n---\n\n{question}"
        if choices and question:
            question, answer, num_choices = choices.lay_out(row, question, answer_column)
        else:
            answer = _final_answer(table, row, answer_column)
        if not (question and answer):
            num_empty += 1
            continue
        num_repeats += question in problems
        known = problems.setdefault(question, Problem(question, answer, name, table.at(row), num_choices))
        if known.answer != answer:
            raise PromptError(f"{table.at(row)}: the question of {known.place} again, with another answer.")
    if not problems:
        raise PromptError(f"{table.path}: no row has both a question ('{question_column}') and an answer.")
    passage_notes = (
        [f"{name}: {num_passages} problems asked with the text in '{passage_column}'"] if num_passages else []
    )
    notes = [f"{name}: {num_repeats} repeated problems left out"] if num_repeats else []
    notes += [f"{name}: {num_empty} rows without a question or an answer left out"] if num_empty else []
    ordered = sorted(problems.values(), key=lambda problem: content_id("order", problem.question))
    return ProblemSet(name, tuple(ordered), (*passage_notes, *notes))


def list_problem_sets() -> dict[str, int]:
    """Return the built-in problem sets with their numbers of problems."""
    return {name: len(load_problems(name).problems) for name in built_in_files(FOLDER)}


def _column(table: Table, content: str, names: Sequence[str]) -> str:
    if (column := table.find(names)) is None:
        has = ", ".join(table.columns)
        raise PromptError(f"{table.path} has no column of {content} ({', '.join(names)}). It has: {has}. Rename one.")
    return column


def _final_answer(table: Table, row: Row, column: str) -> str:
    value = row.cells.get(column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0].strip()
    if isinstance(value, list | dict | bool):
        raise PromptError(f"{table.at(row)}: column '{column}' holds {type(value).__name__}, expected one answer.")
    text = whole_text(table, row, column, cell(row, column))
    _, mark, final = text.rpartition(ANSWER_MARK)
    if mark and not final.strip():
        raise PromptError(f"{table.at(row)}: nothing follows the last {ANSWER_MARK} of column '{column}'.")
    return final.strip() if mark else text
