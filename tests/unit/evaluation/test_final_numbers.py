"""The final answer in a text: boxed, marked or last; a part of something larger does not count; hostile texts."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.evaluation.answers import boxed_answer, final_number, plain_number

REAL = Path(__file__).parents[4] / "shared" / "data" / "reasoning"
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real problem files are not at {REAL}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5-3=2.", 2),
        ("the answers are 1,2", 2),
        ("so 1/2", Fraction(1, 2)),
        ("It is −4", -4),
        ("Total: $1,234.00 per year.", 1234),
        ("4+1+0=5, 5+5+0=10. So 105.", 105),
        ("first 3\n#### 18", 18),
        ("#### 18\nThat is what 7 ducks give.", 18),
        ("**#### 18**", 18),
        ("#### Step 4: add\nso 7 eggs", 7),  # a heading, not a mark
        (r"7 then \boxed{5} and 9", 5),
        (r"\boxed{4} then \boxed{5}", 5),
        (r"\boxed{\text{5}}", 5),
        (r"\boxed{x = 18}", 18),
        (r"\fbox {18}", 18),
        (r"\boxed{3", 3),  # never closed: no box
        (r"\boxed{\frac12} or 3", Fraction(1, 2)),
        (r"\boxed{5 \text{ million}}", 5_000_000),
        ("It is 5 million.", 5_000_000),
        ("So **5 million** dollars.", 5_000_000),
        ("#### 5 million", 5_000_000),
        (r"#### \frac12", Fraction(1, 2)),
        (r"so $\frac{1}{2}$.", Fraction(1, 2)),
        ("It takes 3 1/2 hours", Fraction(7, 2)),
        (r"so $2 \times 10^6$", 2_000_000),
        ("The area is 72 cm^2.", 72),
        ("It is 72 m^2, so", 72),
        (r"area $72\text{ cm}^2$.", 72),
        ("1) **18**", 18),
        ("Step 3: 18", 18),
        (r"costs \$18.", 18),
        ("so 18!", 18),
        ("She eats 84 / 12 = 7 dozen eggs.", 7),
        ("is 18 - that is all", 18),
        ("18kg", 18),
        ("$1500/month * 12 months/year = $18,000/year", 18_000),
    ],
)
def test_the_final_number_is_found(text: str, value: Fraction | int) -> None:
    assert final_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: 42\n\nCheck: 40 + 2 = 42, and 3 checks were made.", 42),
        ("**Answer:** 42. We used 3 steps.", 42),
        ("The answer is 42 because 3 < 5.", 42),
        ("Final answer: $1,234.50\nIt took 2 days.", Fraction(2469, 2)),
        ("The answer is 12 + 30 = 42. It has 2 digits.", 42),
        ("the answer is x = 7, as 7 - 7 = 0", 7),
        ("Answer:\n42\nNote 1.", 42),
        ("The answer is 5. No: the answer is 6.\nStep 9 shows it.", 6),
        ("answer is about\n8", 8),
        ("The answer is below.\n8", 8),
        (r"Answer: 41, so \boxed{42} or 43", 42),
        ("The answer is 9 apples\n#### 10", 10),
        ("The answer is not 41 but 42", 42),
        ("ANSWER = -3\n(1 point)", -3),
    ],
)
def test_what_a_text_calls_its_answer_wins_over_later_numbers(text: str, value: Fraction | int) -> None:
    assert final_number(text) == value


@pytest.mark.parametrize("text", ["", "no number", r"\boxed{x} or 3", r"\boxed{} 3", "x2", "9" * 200])
def test_no_final_number_is_none(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "so 5x", r"so $5\pi$", r"so $\sqrt{5}$", "so $x^5$", "so $x^{5}$", r"so $\frac{\pi}{5}$", r"so $\pi/5$",
        "so 5/x", "$5 + x$", "$5x^2$", "$5^2$", r"\binom{7}{5}", "log_{5}", "5k", "$5M", "5 and a half dozen",
        "5 and a half", "2 tenths", "3-5", "12:05", "2 + 5", r"2 \times 5", r"x \ge 5", "x >= 5",
        "the answer is 5 and a half", "the answer is 5x",
    ],
)  # fmt: skip
def test_a_number_that_is_part_of_something_larger_is_no_answer(text: str) -> None:
    assert final_number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_a_number_in_a_sentence_is_itself_with_or_without_separators(number: int) -> None:
    assert final_number(f"So it is {number}.") == final_number(f"So it is {number:,}.") == number


def test_a_box_may_hold_boxes_and_braces() -> None:
    assert boxed_answer(r"so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed_answer(r"so \boxed{\{1, 2\}}.") == r"\{1, 2\}"
    assert boxed_answer(r"\boxed{1} and \boxed{2") == "1"
    assert boxed_answer("no box {1}") is None


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "#", "1", ",", ".", "/", "-", " ", "x"]), max_size=60))
def test_any_text_gives_a_number_or_none(pieces: list[str]) -> None:
    value = final_number("".join(pieces))
    assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "1 ",
        "9",
        "1,",
        "-",
        "1/",
        "#",
        "\\",
        " ",
        "1.",
        "\\text{",
        "$",
        "1,111",
        "10 ",
        "- ",
        "10^",
        "\\frac{1",
        "ab^ ",
        "1 hundred",
        "1/ ",
        "answer is ",
        "answer ",
        "answer: 1",
    ],
)
def test_the_answer_after_a_long_hostile_text_is_found_in_linear_time(piece: str) -> None:
    """Anything worse than linear would take minutes here."""
    assert final_number(piece * 300_000 + "\n#### 7") == 7


@needs_real_files
def test_the_answers_of_real_solutions_are_found() -> None:
    rows = [json.loads(line) for line in (REAL / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(final_number(row["answer"]) == plain_number(row["answer"].split("####")[1]) for row in rows)
    rows = [json.loads(line) for line in (REAL / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [row for row in rows if plain_number(row["answer"]) is not None]
    assert len(plain) > 300
    assert all(final_number(row["solution"]) == plain_number(row["answer"]) for row in plain)
