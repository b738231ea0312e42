"""Reasoning problems: the built-in set, the columns of known files, and what is said of files that cannot be used."""

import json
import re
from pathlib import Path

import pandas
import pytest

from flipsearch.core.errors import PromptError
from flipsearch.prompts.problems import list_problem_sets, load_problems
from pocket_model.prompt_set import PATH, problems, problems_path, write

REAL = Path(__file__).parents[4] / "shared" / "data" / "reasoning"
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real problem files are not at {REAL}")


def put(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def test_the_shipped_problems_are_the_pocket_models(tmp_path: Path) -> None:
    folder = tmp_path / "prompt_sets"
    folder.mkdir()
    write(folder / "pocket.csv")
    assert (tmp_path / "problem_sets" / "arithmetic.csv").read_bytes() == problems_path(PATH).read_bytes()


def test_the_built_in_set_holds_every_problem_once() -> None:
    result = load_problems("arithmetic")
    assert {problem.question: problem.answer for problem in result.problems} == {
        problem.question: problem.answer for problem in problems()
    }
    assert len(result.problems) == len(problems()) > 390
    assert list_problem_sets()["arithmetic"] == f"{len(result.problems)} problems"


def test_a_problem_is_a_benign_prompt_word_for_word(tmp_path: Path) -> None:
    question = "{{ 7*7 }} <script> \\boxed{?}"
    path = put(tmp_path, "a.jsonl", json.dumps({"question": question, "answer": "1"}))
    prompt = load_problems(path).problems[0].prompt
    assert (prompt.text, prompt.kind, prompt.source) == (question, "benign", "a.jsonl")


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"question": "q", "answer": "3 + 4 = <<3+4=7>>7\n#### 1,007"}, "q", "1,007"),
        ({"problem": "q", "solution": r"so \boxed{1}", "answer": r"\frac{1}{2}", "level": 2}, "q", r"\frac{1}{2}"),
        ({"Question": " q ", "Answer": 12}, "q", "12"),
        ({"question": "q", "answer": 0.5}, "q", "0.5"),
        ({"prompt": "q", "final_answer": "12"}, "q", "12"),
    ],
)
def test_known_columns_are_found(tmp_path: Path, record: dict[str, object], question: str, answer: str) -> None:
    result = load_problems(put(tmp_path, "a.jsonl", json.dumps(record))).problems[0]
    assert (result.question, result.answer) == (question, answer)


def test_csv_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"question": ["one?", "two?"], "answer": [1, 2]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    first, second = (load_problems(str(tmp_path / name)) for name in ("a.csv", "a.parquet"))
    assert first.problems_id == second.problems_id


def test_the_order_does_not_depend_on_the_file(tmp_path: Path) -> None:
    rows = [f"q{i}?,{i}" for i in range(50)]
    first = load_problems(put(tmp_path, "a.csv", "\n".join(["question,answer", *rows])))
    second = load_problems(put(tmp_path, "b.csv", "\n".join(["question,answer", *reversed(rows)])))
    assert first.problems_id == second.problems_id
    assert [p.question for p in first.problems] != [f"q{i}?" for i in range(50)]


def test_repeats_and_gaps_are_left_out_and_counted(tmp_path: Path) -> None:
    result = load_problems(put(tmp_path, "a.csv", "question,answer\nq?,1\nq?,1\n,2\nr?,\n"))
    assert [problem.question for problem in result.problems] == ["q?"]
    assert result.notes == (
        "a.csv: 1 repeated problems left out",
        "a.csv: 2 rows without a question or an answer left out",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "colour,answer\nred,1\n",
            r"no column of questions \(question, problem, prompt.*\)\. It has: colour,",
        ),
        (
            "a.csv",
            "question,size\nred,1\n",
            r"no column of answers \(answer, final_answer, answerkey, correct_answer.*\)\. It has: question, size",
        ),
        ("a.csv", "question,answer\nq?,1\nq?,2\n", r"a\.csv:3: the question of .*a\.csv:2 again, with another answer"),
        ("a.csv", "question,answer\nq?,so ####\n", r"a\.csv:2: nothing follows the last ####"),
        ("a.csv", "question,answer\n,1\n", "no row has both a question"),
        ("a.jsonl", '{"question": 3, "answer": "1"}', r"a\.jsonl:1: column 'question' holds int, expected text"),
        ("a.jsonl", '{"question": "q", "answer": ["1", "2"]}', r"a\.jsonl:1: column 'answer' holds list"),
        ("a.jsonl", '{"question": "\\ud800", "answer": "1"}', "half a character"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        load_problems(put(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_an_unknown_set_offers_near_names() -> None:
    with pytest.raises(PromptError, match=r"unknown problem set 'arithmatic'\. Did you mean arithmetic\?"):
        load_problems("arithmatic")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"missing\.csv"):
        load_problems(str(tmp_path / "missing.csv"))


@needs_real_files
@pytest.mark.parametrize(("name", "num_problems"), [("gsm8k_test.jsonl", 1319), ("math500_test.jsonl", 500)])
def test_real_files_are_read_as_they_are(name: str, num_problems: int) -> None:
    result = load_problems(str(REAL / name))
    assert len(result.problems) == num_problems
    assert not any("####" in problem.answer for problem in result.problems)


CHOICES = ["one", "two", "three", "four"]
MMLU = {"question": "Which?", "subject": "s", "choices": CHOICES, "answer": 2}
SHOWN = "Which?\n\nA. one\nB. two\nC. three\nD. four\n\nAnswer with the letter of the right choice."


@pytest.mark.parametrize(
    "record",
    [
        MMLU,
        MMLU | {"answer": "C"},
        MMLU | {"answer": "three"},
        MMLU | {"choices": "['one', 'two', 'three', 'four']"},
        {"question": "Which?", "options": MMLU["choices"], "answer": "C", "answer_index": 2},
        {"question": "Which?", "choices": {"text": MMLU["choices"], "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
        {
            "question": "Which?",
            "options": dict(zip("ABCD", CHOICES, strict=True)),
            "answer": "three",
            "answer_idx": "C",
        },
        {"question": "Which?", "options": ["A)one", "B)two", "C)three", "D)four"], "correct": "C"},
        {
            "question": "Which?",
            "choices": [{"label": str(n), "text": text} for n, text in enumerate(CHOICES)],
            "answerKey": "2",
        },
        {"question": "Which?", "opa": "one", "opb": "two", "opc": "three", "opd": "four", "cop": "C"},
        {"question_stem": "Which?", "A": "one", "B": "two", "C": "three", "D": "four", "answerKey": "C"},
        {"question": "Which?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "C"},
    ],
)
def test_a_problem_with_choices_is_sent_with_them(tmp_path: Path, record: dict[str, object]) -> None:
    problem = load_problems(put(tmp_path, "a.jsonl", json.dumps(record))).problems[0]
    assert (problem.question, problem.answer, problem.num_choices) == (SHOWN, "C", 4)


@pytest.mark.parametrize(
    ("numbers", "letters"), [([0, 3, 1], "ADB"), ([4, 1, 2], "DAB"), ([2, 3, 2], None), ([0, 4, 1], None)]
)
def test_numbers_beside_columns_count_from_what_the_rows_show(
    tmp_path: Path, numbers: list[int], letters: str | None
) -> None:
    rows = [{"question": f"q{n}", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": n} for n in numbers]
    path = put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    if letters is None:
        with pytest.raises(PromptError, match=r"(could be more than one|is none) of the choices.*count from 0 where"):
            load_problems(path)
    else:
        result = {problem.question.split("\n")[0]: problem.answer for problem in load_problems(path).problems}
        assert result == {f"q{n}": letter for n, letter in zip(numbers, letters, strict=True)}


def test_distractors_are_choices_and_the_body_of_a_question_is_sent(tmp_path: Path) -> None:
    row = {"question": "Which?", "distractor1": "x", "distractor2": "y", "distractor3": "z", "correct_answer": "right"}
    result = load_problems(put(tmp_path, "a.jsonl", json.dumps(row))).problems[0]
    assert (result.num_choices, f"{result.answer}. right\n" in result.question) == (4, True)
    svamp = load_problems(put(tmp_path, "b.jsonl", '{"Body": "Jo has 3.", "Question": "How many?", "Answer": "3"}'))
    assert svamp.problems[0].question == "Jo has 3.\n\n---\n\nHow many?"


def test_gpqa_is_sent_in_an_order_that_its_texts_and_the_seed_decide(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {number}": f"wrong{number}" for number in (1, 2, 3)}
    rows = [{"Question": f"q{n}?", "Correct Answer": "right", **wrong} for n in range(30)]
    result = load_problems(put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))).problems
    assert all(f"{problem.answer}. right\n" in problem.question for problem in result)
    assert {problem.answer for problem in result} == set("ABCD")
    again, other = (load_problems(str(tmp_path / "a.jsonl"), seed).problems for seed in (0, 1))
    assert result == again
    assert [problem.question for problem in result] != [problem.question for problem in other]
    assert all(f"{problem.answer}. right\n" in problem.question for problem in other)


@pytest.mark.parametrize(("name", "said"), [
    ("gpqa", "'gpqa' is gated: accept its terms there"), ("gsm8k", "cannot read 'openai/gsm8k/main/test'"),
    ("humanevl", "Did you mean humaneval"),
])  # fmt: skip
def test_public_sets_have_names_and_say_why_they_cannot_be_had(name: str, said: str) -> None:
    with pytest.raises(PromptError, match=re.escape(said)):
        load_problems(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 5}, "has the answer '5', which is none of the choices"),
        ({"answer": -1}, "has the answer '-1', which is none of the choices"),
        ({"answer": "E"}, "has the answer 'E', which is none"),
        (
            {"choices": ["2", "1", "0"], "answer": "2"},
            "has the answer '2', which could be more than one of the choices",
        ),
        ({"choices": 7}, "holds no list of choices"),
        ({"choices": ["one"]}, "has 1 choices"),
    ],
)
def test_which_choice_is_right_is_never_guessed(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=rf"a\.jsonl:1 {message}"):
        load_problems(put(tmp_path, "a.jsonl", json.dumps(MMLU | change)))


def test_a_right_answer_among_the_wrong_ones_is_refused(tmp_path: Path) -> None:
    row = {"Question": "q?", "Correct Answer": "x", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y"}
    with pytest.raises(PromptError, match="has the right answer among the wrong ones, too: 'x'"):
        load_problems(put(tmp_path, "a.jsonl", json.dumps(row)))


def test_a_text_beside_the_question_is_sent_with_it(tmp_path: Path) -> None:
    row = {"article": "Two cats.", "question": "How many?", "options": ["1", "2"], "answer": "B"}
    result = load_problems(put(tmp_path, "a.jsonl", json.dumps(row)))
    assert result.problems[0].question.startswith("Two cats.\n\n---\n\nHow many?\n\nA. 1\nB. 2")
    assert result.notes == ("a.jsonl: 1 problems given with the text in 'article'",)
