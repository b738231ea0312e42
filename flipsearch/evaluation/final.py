r"""The final answer in a text, and plain numbers: what needs no algebra.

The last \boxed{} counts; without one, a number behind the last ####; without that, the last number. The text is
hostile: everything here is linear in its length, and no number is read that is longer than an answer would be.
"""

import re
from collections import deque
from fractions import Fraction

MARK = "####"
MAX_DIGITS = 100
_NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))"
_PLAIN = re.compile(rf"\+?(?P<number>{_NUMBER})\.?")
_LAST = re.compile(rf"(?<![0-9A-Za-z_])(?<![0-9]\.)(?P<number>{_NUMBER})(?:\s*/\s*(?P<divisor>[1-9][0-9]*))?")
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_WORDS = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf)\s*\{(?P<words>[^{}]*)\}")
_DRESS = re.compile(r"\\[!,;: $%]\s*|[$%°\u2009\u202f]|\^\s*\{?\s*\\circ\s*\}?|\\left|\\right")
# Two letters at least: one alone may be a variable. A number word is no unit.
_UNIT = re.compile(
    r"(?<=[0-9])\s+(?!(?:hundred|thousand|million|billion|trillion|dozen)s?\b)[A-Za-z]{2,}(?:\s+[A-Za-z]+)*\s*$", re.I
)


def plain_number(text: str) -> Fraction | None:
    """Return the value of a plain integer or decimal, or None for anything else.

    Thousands separators, dollar, per cent and degree signs and a unit in words behind it are left aside.
    """
    if len(text) > 2 * MAX_DIGITS:
        return None
    shown = _DRESS.sub("", _WORDS.sub(_undressed, text.replace("−", "-"))).replace("{,}", "").strip()
    found = _PLAIN.fullmatch(_UNIT.sub("", shown))
    return _value(found["number"]) if found else None


def boxed_answer(text: str) -> str | None:
    r"""Return what stands in the last \boxed{} that is closed; None if there is none."""
    opened: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace["open"]:
            opened.append((bool(brace["box"]), brace.end()))
        elif brace["close"] and opened:
            is_box, start = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = start, brace.start()
    return text[slice(*last)].strip() if last else None


def last_number(text: str) -> Fraction | None:
    """Return the last number in running text, a fraction such as 1/2 included; None if there is none."""
    last = next(iter(deque(_LAST.finditer(text.replace("−", "-")), maxlen=1)), None)
    if last is None or (value := _value(last["number"])) is None or len(last["divisor"] or "") > MAX_DIGITS:
        return None
    return value / int(last["divisor"] or 1)


def final_number(text: str) -> Fraction | None:
    """Return the number that a text gives as its answer; a boxed one may be an equation."""
    if (boxed := boxed_answer(text)) is not None:
        return plain_number(boxed.rpartition("=")[2])
    # Four hashes open a heading, too: only a number behind them is an answer.
    _, mark, behind = text.rpartition(MARK)
    marked = plain_number(behind.strip().partition("\n")[0].strip("* `")) if mark else None
    return last_number(text) if marked is None else marked


def _undressed(found: re.Match[str]) -> str:
    return found["words"] if any(c.isdigit() for c in found["words"]) else " "


def _value(number: str) -> Fraction | None:
    return Fraction(number.replace(",", "")) if len(number) <= MAX_DIGITS else None
