"""Numbers in their many notations: one number is read exactly, what may be another is not read at all."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.evaluation.answers import number, plain_number, right_side

NOTATIONS = {
    "18": (
        "18", "+18", "18.", "18.0", "(18)", "{18}", r"\left( 18 \right)", "~18", r"18\quad", r"\qquad 18", r"\$18",
        "$18", r"18\%", "18%", "€18", r"18^\circ", r"18^{\circ}", "18°", r"18^\circ\text{C}", "18°F", "18 dollars",
        "18 of them", r"18\,\text{cm}", r"18~\text{cm}", r"18 \text{ cm}^2", r"18\ \mathrm{cm}^{2}", "18 cm^2",
        "18 cm²", "18cm", "18 km/h", r"18\text{ m/s}^2", r"18\text{ m}", "18 square feet", r"18 \mbox{ inches}^2",
        r"18\text{ dollars per hour}", "18 dollars a day", r"\textbf{18}", r"\text{18 eggs}", r"\textbf{(E) } 18",
        r"\( 18 \)", "18 dozen", r"18 \text{ dozen}", r"\frac{36}{2}", "36/2", r"\displaystyle 18",
    ),
    "-18": ("-18", "−18", r"-\$18", "$-18$", "(-18)", r"\frac{-36}{2}", r"-\dfrac{36}{2}"),
    "1/2": (
        r"\frac12", r"\frac 1 2", r"\frac{1}2", r"\tfrac{1}{2}", "1/2", "0.5", ".5", r"\frac12\text{ cm}",
        r"(\frac{1}{2})",
    ),
    "7/2": (r"3\frac{1}{2}", r"3 \frac12", "3 1/2", "3.5", "7/2", r"3\tfrac{1}{2}\text{ hours}"),
    "32348": ("32,348", r"32,\!348", r"32\,348", "32{,}348", "32\u2009348", r"\$32,348.00"),
    "5000000": (
        "5 million", r"5 \text{ million}", r"\$5\text{ million}", "5 Million dollars", "5-million", "0.5e7",
        r"5 \times 10^6", r"5\cdot 10^{6}", "5 x 10^6", r"50\text{ hundred thousand}",
    ),
    "1/100": ("10^{-2}", "1e-2", "1/100"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), [(value, text) for value, texts in NOTATIONS.items() for text in texts])
def test_a_number_is_read_in_any_notation(value: str, text: str) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "5x", "5xy", "5 xy", "5 x", "x5", "5i", r"5\text{i}", r"2\mathrm{e}", "5 pi", r"5\pi", "5 m^2",
        "5 times x", "52_8", r"52_{\text{eight}}", r"\sqrt{5}", "5^2", r"\pm 5", "5!", "|5|", "5 squared",
        r"5 \pmod{7}", "5 mod 7", "3, 5", "3,5", "1,-2", "3 5", "3~5", r"3\quad 5", r"3\;5", "5%3", "(3,5)", "(1,234)",
        "(3,4]", "[5]", r"\{5\}", "5 or so", "5 or six", r"5 \text{ or } 6", r"\text{not }5", r"\text{at least }5",
        "5 and a half", r"5\text{ and a half}", "5 feet six", "5 tenths", "2 and a half dozen",
        "5 million and two", r"5\text{ less than }x", "2-5", "5+1", r"5\cdot 6", "5/6/7", "5/0", r"\frac{1}{0}",
        r"\frac123", r"\frac{x}{5}", r"3\frac{7}{2}", "10^12", "1e999", "1{,}23", "12,34", "2k", "2 k", "5M",
        r"5\text{k}", r"5\text{M}", r"\text{five}", "9" * 101, "1" + " " * 300 + "1",
    ],
)  # fmt: skip
def test_what_may_be_another_number_is_not_read(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize("text", ["1/2", r"\frac{1}{2}", r"3\frac{1}{2}", "10^6", "1e6"])
def test_only_integers_and_decimals_are_plain(text: str) -> None:
    assert plain_number(text) is None
    assert number(text) is not None


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "({})", r"{} \text{{ cm}}^2", r"\textbf{{{:,}}}"])
)
def test_every_number_is_itself_in_any_notation(value: int, notation: str) -> None:
    assert plain_number(notation.format(value)) == value


@given(st.integers(-999, 999), st.integers(2, 999))
def test_every_fraction_is_itself(top: int, under: int) -> None:
    assert number(rf"\frac{{{top}}}{{{under}}}") == number(f"{top}/{under}") == Fraction(top, under)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("5", "5"), ("x = 5", " 5"), ("10+8=18", "18"), ("600+600=1,200=12", "12"), ("f(1, 2) = 3", " 3"),
        ("x_{1,2}=3", "3"), (r"\text{Total, with tax} = 5", " 5"), (r"a\,=5", "5"), (r"x \approx 5", " 5"),
    ],
)  # fmt: skip
def test_an_equation_states_its_right_side(text: str, right: str) -> None:
    assert right_side(text) == right


@pytest.mark.parametrize(
    "text",
    [
        "x >= 5", "x<=5", "x != 5", r"x \not= 5", "a=3, b=5", "a=3; b=5", r"a=3 \quad b=5", "x=3 or x=5",
        r"x=3 \text{ or } x=5", r"a=3 \\ b=5", "3, x=5", r"0 < x = 5",
    ],
)  # fmt: skip
def test_two_answers_or_another_relation_state_nothing(text: str) -> None:
    assert right_side(text) is None


PIECES = [
    "1", ",", ".", "/", "-", " ", "x", "^", "{", "}", "(", ")", "\\frac", "\\text{", " million", "10^", "e", "%",
    "=", "~", "\\,"
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_text_is_a_number_or_none(pieces: list[str]) -> None:
    value = number("".join(pieces))
    assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize(
    "piece", [*PIECES, "1 ", "1,111", "9", "\\frac{1", "\\text{a", "1\\,", "10 ", "10^{", "a^ ", "1 hundred", "= "]
)  # fmt: skip
def test_long_hostile_texts_take_linear_time(piece: str) -> None:
    """Anything worse than linear would take minutes here."""
    assert number(piece * 200_000 + "!") is None
    right_side(piece * 200_000)
