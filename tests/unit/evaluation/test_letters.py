"""A chosen letter is read where the text says it, and nowhere else."""

import pytest

from flipsearch.evaluation.answers import chosen_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B. Paris", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) because it is the largest.", "B"),
        ("Answer: C", "C"),
        ("**Answer:** D", "D"),
        ("First I thought the answer is A. But no.\nSo the answer: B", "B"),
        (r"so \boxed{C}", "C"),
        (r"so \boxed{\text{(C)}}", "C"),
        ("A is wrong, B is wrong.\n\nD", "D"),
        ("The correct option is B", "B"),
        ("A good question. There is no way to tell.", None),
        ("The answer is a mystery.", None),
        ("The answer is E.", None),
        ("The answer is A good one", None),
        ("Let us compare:\nA. 2\nB. 10", None),
        ("", None),
        ("42", None),
    ],
)
def test_a_letter_is_read_where_it_is_chosen(text: str, letter: str | None) -> None:
    assert chosen_letter(text, 4) == letter
