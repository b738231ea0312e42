r"""The final answer in a text: what needs no algebra.

The last \boxed{} counts; without one, a number behind the last ####; without that, the last number. The text is
hostile: everything here is linear in its length.
"""

import re
from collections import deque
from fractions import Fraction

from flipsearch.evaluation.numbers import SCALE, VALUE, number, right_side, undressed, value

MARK = "####"
_LAST = re.compile(rf"(?<![0-9A-Za-z_])(?<![0-9]\.)(?P<sign>-)?{VALUE}{SCALE}", re.I)
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
# cm^2, and m^2 or m/s^2 behind a blank or stroke: an exponent that is no number of its own.
_UNIT_POWER = re.compile(r"(?:(?<=[A-Za-z][A-Za-z])|(?<=[0-9\s/][ms]))\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9](?![0-9]))")
_AROUND = 24
"""Characters looked at on either side of a number in running text."""
# In running text a number with one of these beside it is a part of something else.
_SPOILT_BEFORE = re.compile(
    r"(?:[\^_]\s*\{?|\\sqrt\s*(?:\[[0-9]+\])?\s*\{?|\}\s*\{|[0-9)]\s*[+*]|\S\s*/|[×·±≠≤≥]|[!<>]="
    r"|\\(?:times|cdot|div|pm|leq?|geq?|neq?|lt|gt))\s*$|(?:[0-9A-Za-z)][-–]|[0-9]:)$"
)
_SPOILT_BEHIND = re.compile(
    r"\s*\^|\s*/\s*(?:[0-9\\(]|[nxyz](?![A-Za-z]))|\s*\\(?:pi|sqrt|[dt]?frac|cdot|times|div|pm|theta|alpha|log|ln|sin|cos|tan|infty|p?mod|binom)\b"
    r"|(?:[abeijknxyzKMBT]|bn|mn|mln)(?![A-Za-z])|\s?[xyz](?![A-Za-z])|\s*[-+*×·]\s*[b-hj-z](?![A-Za-z])"
    r"|\s+(?:half|halves|thirds?|fifths?|tenths?|hundredths?|thousandths?|millionths?)\b"
    r"|\s+and\s+(?:an?|one|two|three)\s+(?:half|third|quarter|fourth|fifth)"
)


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
    """Return the last number in running text; None if there is none, or if it is part of something larger ("5x")."""
    shown = _UNIT_POWER.sub("", undressed(text))
    last = next(iter(deque(_LAST.finditer(shown), maxlen=1)), None)
    if last is None:
        return None
    before = shown[max(0, last.start() - _AROUND) : last.start()]
    behind = shown[last.end() : last.end() + _AROUND]
    return None if _SPOILT_BEFORE.search(before) or _SPOILT_BEHIND.match(behind) else value(last)


def final_number(text: str) -> Fraction | None:
    """Return the number that a text gives as its answer; a boxed one may be an equation."""
    if (boxed := boxed_answer(text)) is not None:
        right = right_side(boxed)
        return None if right is None else number(right)
    # Four hashes open a heading, too: only a number behind them is an answer.
    _, mark, behind = text.rpartition(MARK)
    marked = number(behind.strip().partition("\n")[0].strip("* `")) if mark else None
    return last_number(text) if marked is None else marked
