"""The final answer in a text: boxed, marked or last; plain numbers in their many dresses; hostile texts."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.evaluation.final import boxed_answer, final_number, last_number, plain_number

REAL = Path(__file__).parents[4] / "shared" / "data" / "reasoning"
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real problem files are not at {REAL}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18), ("-3", -3), ("−3", -3), ("+7", 7), ("1,234.50", Fraction(2469, 2)), (".5", Fraction(1, 2)),
        ("18.", 18), ("$18", 18), (r"\$32,\!348", 32348), (r"11,\! 111", 11111), ("12{,}345", 12345), (r"50\%", 50),
        (r"145^\circ", 145), (r"90^{\circ}", 90), (r"5.4 \text{ cents}", Fraction(27, 5)), ("18 dollars", 18),
        (r"\text{18}", 18),
    ],
)  # fmt: skip
def test_plain_numbers_are_read(text: str, value: Fraction | int) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "1,-2", "3, 5", "2k", "2 k", "52_8", r"\pi", r"7\pi", r"\frac{1}{2}", "1/2", "(3,4]", "9" * 101]
)
def test_other_answers_are_no_plain_numbers(text: str) -> None:
    assert plain_number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_itself_with_or_without_separators(number: int) -> None:
    assert plain_number(str(number)) == plain_number(f"{number:,}") == last_number(f"So it is {number:,}.") == number


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
    ],
)
def test_the_final_number_is_found(text: str, value: Fraction | int) -> None:
    assert final_number(text) == value


@pytest.mark.parametrize("text", ["", "no number", r"\boxed{\frac12} or 3", r"\boxed{} 3", "x2", "9" * 200])
def test_no_final_number_is_none(text: str) -> None:
    assert final_number(text) is None


def test_a_box_may_hold_boxes_and_braces() -> None:
    assert boxed_answer(r"so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed_answer(r"so \boxed{\{1, 2\}}.") == r"\{1, 2\}"
    assert boxed_answer(r"\boxed{1} and \boxed{2") == "1"
    assert boxed_answer("no box {1}") is None


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "#", "1", ",", ".", "/", "-", " ", "x"]), max_size=60))
def test_any_text_gives_a_number_or_none(pieces: list[str]) -> None:
    found = final_number("".join(pieces))
    assert found is None or isinstance(found, Fraction)


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "1 ", "9", "1,", "-", "1/", "#", "\\", " ", "1.", "\\text{", "$"])
def test_long_hostile_texts_are_done_with(piece: str) -> None:
    """Anything worse than linear would take minutes here."""
    final_number(piece * 300_000)


@needs_real_files
def test_the_answers_of_real_solutions_are_found() -> None:
    rows = [json.loads(line) for line in (REAL / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(final_number(row["answer"]) == plain_number(row["answer"].split("####")[1]) for row in rows)
    rows = [json.loads(line) for line in (REAL / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [row for row in rows if plain_number(row["answer"]) is not None]
    assert len(plain) > 300
    assert all(final_number(row["solution"]) == plain_number(row["answer"]) for row in plain)


@pytest.mark.parametrize("text", ["5 million", "2 Thousand dollars", "3 dozen"])
def test_a_number_word_is_no_unit(text: str) -> None:
    assert plain_number(text) is None
    assert plain_number("5 millimetres") == 5
