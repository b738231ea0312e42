"""Reasoning problems: the built-in sets and the user's files, as questions with a reference answer.

Files are those of prompt sets. A question is used as it is written. Of an answer that shows its working before "####"
(GSM8K), the part after the mark counts; any other answer is taken whole. Problems with choices (MMLU, ARC, GPQA) are
sent with them, lettered, and their answer is a letter. A text beside the question (RACE, DROP) is sent with it.

Choices are a list beside its answer's number or letter (MMLU), one with labels of its own (ARC, MedQA), columns A to D
(or opa to opd, MedMCQA), or a right answer beside wrong ones (GPQA, SciQ), which are shuffled by their text. Which one
is right is never guessed: whether numbers count from 0 or from 1 is read from all rows.

A new built-in set is one file, problem_sets/NAME.csv with the columns question and answer.
"""

import ast
import builtins
import re
import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from keyword import iskeyword
from typing import Any, NoReturn

from flipsearch.core.errors import PromptError, one_line
from flipsearch.core.records import Prompt, content_id
from flipsearch.prompts.files import (
    COMPANION_COLUMNS,
    Table,
    built_in_files,
    cell,
    check_name,
    read_table,
    text_cell,
    whole_text,
)
from flipsearch.prompts.formats import Row
from flipsearch.prompts.rows import written_list

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the letter of the right choice."
_RIGHT = ("correct_answer", "answer", "target")
_COLUMNS = tuple([before + name for name in "abcdefghij"] for before in ("", "op", "option_", "choice_"))
_WRONG = tuple(name + number for name in ("incorrect_answer_", "distractor") for number in "1234")
_OWN_LETTER = re.compile(r"\s*\(?([A-Z])\s?[).:]\s*")


@dataclass(frozen=True, slots=True)
class Choices:
    """Where the choices of a table stand."""

    table: Table
    list_column: str | None = None
    columns: tuple[str, ...] = ()
    shuffles: bool = False
    """The first of `columns` is right: the choices are ordered by their hashes."""
    seed: int = 0
    """Of that order."""
    counts_from: tuple[int, ...] = (0, 1)
    """What the first choice's number is; more than one where the rows do not show it."""

    def lay_out(self, row: Row, question: str, answer_column: str) -> tuple[str, str, int]:
        """Return question and choices, the right letter ("": no answer) and their number; PromptError if unreadable."""
        texts, labels = self.texts(row)
        if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
            num_empty = texts.count("")
            self._refuse(
                row, f"has {len(texts)} choices, {num_empty} of them empty; expected 2 to {len(LETTERS)} texts"
            )
        if self.shuffles:
            right = texts[0]
            if right in texts[1:]:
                self._refuse(row, f"has the right answer among the wrong ones, too: '{right[:40]}'")
            texts = sorted(texts, key=lambda text: content_id("choice", self.seed, question, text))
            index = texts.index(right)
        else:
            if not cell(row, answer_column):
                return question, "", len(texts)
            index = self._index(row, answer_column, texts, labels)
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        return "\n".join([question, "", *lines, "", INSTRUCTION]), LETTERS[index], len(texts)

    def texts(self, row: Row) -> tuple[list[str], list[str]]:
        """Return the choices of a row, and the labels that the file has for them, if any."""
        if self.list_column is None:
            texts = [cell(row, column) for column in self.columns]
            return [text for text in texts if text] if not self.shuffles else texts, []
        value: Any = row.cells.get(self.list_column)
        if isinstance(value, str):
            value = written_list(value)
        labels: Sequence[Any] = []
        if isinstance(value, list) and value and all(isinstance(member, Mapping) for member in value):
            names = ("label", "text") if "text" in value[0] else ("key", "value")
            labels, value = ([member.get(name, "") for member in value] for name in names)
        elif isinstance(value, Mapping) and "text" in value:
            value, labels = value["text"], value.get("label", [])
        elif isinstance(value, Mapping):
            labels, value = list(value), list(value.values())
        if not isinstance(value, list) or not isinstance(labels, list):
            self._refuse(row, "holds no list of choices")
        texts = [str(text).strip() for text in value]
        own = [match[1] if (match := _OWN_LETTER.match(text)) else "" for text in texts]
        if own == list(LETTERS[: len(own)]):  # written into the texts, as in AQuA
            texts = [_OWN_LETTER.sub("", text, count=1) for text in texts]
        return texts, [str(label).strip() for label in labels]

    def _index(self, row: Row, column: str, texts: Sequence[str], labels: Sequence[str]) -> int:
        """Return which choice an answer means: a label, letter, number or text; all that fit must agree."""
        answer, is_number = cell(row, column), isinstance(row.cells.get(column), int)
        if labels and len(labels) == len(texts) and answer in labels:
            fitting = {labels.index(answer)}
        else:
            fitting = {LETTERS.index(answer)} if len(answer) == 1 and answer in LETTERS[: len(texts)] else set()
            if not labels and answer.isdecimal() and len(answer) < 3:
                numbers = {int(answer) - first for first in self.counts_from}
                fitting |= numbers & set(range(len(texts)))
            if not is_number:
                fitting |= {texts.index(answer)} if answer in texts else set()
        if len(fitting) != 1:
            what = "could be more than one of the choices" if fitting else "is none of the choices"
            self._refuse(
                row,
                f"has the answer '{answer[:40]}', which {what} (a letter, the text, or a number: they count from 0 "
                "where a row has 0, else from 1 where a row has its number of choices)",
            )
        return fitting.pop()

    def _refuse(self, row: Row, what: str) -> NoReturn:
        raise PromptError(f"{self.table.at(row)} {what}.")


def find_choices(table: Table, answer_columns: Sequence[str], seed: int = 0) -> Choices | None:
    """Return where choices stand, None without any; `answer_columns` are names of columns of answers, best first."""
    wrong = [column for name in _WRONG if (column := table.find([name]))]
    if wrong and (right := table.find(_RIGHT)):
        return Choices(table, columns=(right, *wrong), shuffles=True, seed=seed)
    choices = None
    if listed := table.find(["choices", "options"]):
        choices = Choices(table, list_column=listed)
    for names in _COLUMNS:
        lettered = [column for name in names if (column := table.find([name]))]
        if choices is None and len(lettered) > 1:
            choices = Choices(table, columns=tuple(lettered))
    column = table.find(answer_columns)
    if choices is None or column is None:
        return choices
    counts_from = (0,) if choices.list_column else (0, 1)  # a list is counted from 0 unless its rows say otherwise
    for row in table.rows:
        answer = cell(row, column)
        if answer == "0":
            return replace(choices, counts_from=(0,))
        if answer.isdecimal() and answer == str(len(choices.texts(row)[0])):
            counts_from = (1,)
    return replace(choices, counts_from=counts_from)


FOLDER = "problem_sets"
QUESTION_COLUMNS = ("question", "problem", "prompt", "question_stem", "query")
ANSWER_COLUMNS = (
    "answer", "final_answer", "answerkey", "correct_answer", "answer_idx", "correct_option", "correct", "cop",
    "answer_number", "final_ans",
)  # fmt: skip
ANSWER_MARK = "####"
REPEATS = "repeated problems left out"
PUBLIC_SETS = {
    "gsm8k": "openai/gsm8k/main/test",
    "math-500": "HuggingFaceH4/MATH-500",
    "humaneval": "openai/openai_humaneval",
    "humaneval+": "evalplus/humanevalplus",
    "mbpp": "google-research-datasets/mbpp/full/test",
    "mbpp+": "evalplus/mbppplus",
    "gpqa": "",
}
"""Name -> its dataset on the Hugging Face hub; "" where that is gated."""
GPQA = "huggingface.co/datasets/Idavidrein/gpqa"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer."""

    question: str
    """Hostile text, like any prompt."""
    answer: str
    """A number, an expression in LaTeX, a letter or, of a programming problem, a program that passes."""
    set_name: str
    place: str
    num_choices: int = 0
    """More than 0 if the answer is one of the letters from A on."""
    tests: str = ""
    """Python code that a right answer's program passes; its names are the program's. Hostile, like the question."""
    entry_point: str = ""
    """The function that the program has to define, where the set names one."""
    given_code: str = ""
    """Code in the question that the answer completes."""

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
    def runs_programs(self) -> bool:
        """Whether answers are programs."""
        return any(problem.tests for problem in self.problems)

    @property
    def problems_id(self) -> str:
        """Content hash of all questions and answers."""
        return content_id("problems", [[part.question, part.answer, part.tests] for part in self.problems])


def load_problems(spec: str, seed: int = 0) -> ProblemSet:
    """Return a built-in problem set, or a file's, choices shuffled by `seed`; PromptError for what is unusable."""
    built_in, public = built_in_files(FOLDER), PUBLIC_SETS.get(spec)
    if public == "":
        raise PromptError(f"'{spec}' is gated: accept its terms there (https://{GPQA}), and give its file.")
    if not public and spec not in built_in:
        check_name(spec, {**built_in, **PUBLIC_SETS}, "problem set")
    table = read_table(public or str(built_in.get(spec, spec)))
    name = spec if public or spec in built_in else table.name
    if table.find(["task_id"]) and table.find(["test", "test_list"]):
        programs: dict[str, Problem] = {}
        num_repeats = 0
        for row in table.rows:
            problem = programming_problem(table, row, name)
            known = programs.setdefault(problem.question, problem)
            if known.tests != problem.tests:
                raise PromptError(f"{problem.place}: the question of {known.place} again, with other tests.")
            num_repeats += known is not problem
        return _in_order(name, list(programs.values()), (f"{name}: {num_repeats} {REPEATS}",) if num_repeats else ())
    question_column = _column(table, "questions", QUESTION_COLUMNS)
    choices = find_choices(table, ANSWER_COLUMNS, seed)
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
    counts = {
        f"problems given with the text in '{passage_column}'": num_passages,
        REPEATS: num_repeats,
        "rows without a question or an answer left out": num_empty,
    }
    notes = tuple(f"{name}: {num} {what}" for what, num in counts.items() if num)
    return _in_order(name, list(problems.values()), notes)


def _in_order(name: str, problems: Sequence[Problem], notes: tuple[str, ...]) -> ProblemSet:
    ordered = sorted(problems, key=lambda problem: content_id("order", problem.question))
    return ProblemSet(name, tuple(ordered), notes)


WRITE_FUNCTION = "Complete this Python function. Answer with the whole function in one Python code block."
WRITE_PROGRAM = "Answer with Python code in one code block. It has to pass this test:"


def programming_problem(table: Table, row: Row, set_name: str) -> Problem:
    """Return a row of HumanEval(+), which names a function, or of MBPP(+), which shows a test."""

    def code(*names: str) -> str:
        value: Any = next(filter(None, (row.cells.get(table.find([name]) or "") for name in names)), "")
        value = written_list(value) or value if isinstance(value, str) and value.startswith("[") else value
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

    place, task, listed, whole = table.at(row), code("prompt", "text"), code("test_list"), code("test")
    if not task.strip() or not (listed or whole).strip():
        raise PromptError(f"{place} has no task or no tests.")
    answer, entry_point = code("canonical_solution", "code"), code("entry_point")
    if not entry_point:
        first = listed.split("\nassert ")[0]
        shown = f"{task.strip()}\n\n{WRITE_PROGRAM}\n\n```python\n{first}\n```"
        tests = "\n".join([code("test_imports"), code("test_setup_code"), whole or listed])
        used, own = _names_used(_compiled(tests, place)), {*dir(builtins), "math"}
        # A function that is named as one of Python's own is the program's in the tests, if a right program has it.
        entry_point = next((name for name in sorted(used & own) if re.search(rf"^def {name}\b", answer, re.M)), "")
        if not entry_point and used <= own:
            named = f" (they use {', '.join(sorted(used))[:80]})" if used else ""
            raise PromptError(f"{place}: its tests use nothing that a program defines{named}: any would pass.")
        return Problem(shown, answer, set_name, place, 0, tests, entry_point)
    if not entry_point.isidentifier() or iskeyword(entry_point) or entry_point in ("math", "check"):
        raise PromptError(f"{place}: entry_point is '{entry_point[:40]}', expected the name of a new function.")
    if not re.search(r"\bcheck\b", whole):
        raise PromptError(f"{place}: the tests define no function 'check', which HumanEval's have.")
    shown = f"{WRITE_FUNCTION}\n\n```python\n{task.strip()}\n```"
    tests = _compiled(f"{whole}\n\ncheck({entry_point})\n", place)
    return Problem(shown, answer, set_name, place, 0, tests, entry_point, task)


def _compiled(tests: str, place: str) -> str:
    """Return tests that are Python; PromptError for others, which no program could pass. Nothing is run."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tests, "tests", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PromptError(f"{place}: its tests are no Python ({one_line(error, 80)}).") from error
    return tests


def _names_used(code: str) -> set[str]:
    """Return the names that Python code uses and does not make."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    return {name.id for name in names} - made


def list_problem_sets() -> dict[str, str]:
    """Return the names that are known: built-in problem sets with their sizes, and public ones with where they are."""
    sizes = {name: f"{len(load_problems(name).problems)} problems" for name in built_in_files(FOLDER)}
    hub = {name: f"hub dataset {dataset}" if dataset else f"gated: {GPQA}" for name, dataset in PUBLIC_SETS.items()}
    return sizes | hub


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
