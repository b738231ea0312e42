"""Numbers as models write them: dressed in LaTeX, with separators, units, fractions, powers of ten, number words.

Exact or not at all: what may mean another number ("5x", "3, 5", "5 and a half") is none. The text is hostile:
everything here is linear in its length, and no number is read that is longer than an answer would be.

Expressions compared by math-verify, in a process of its own that hostile text can hang but not take along.

Works in any thread, and nothing that math-verify prints reaches the terminal.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from flipsearch.core.errors import JudgeError

MAX_DIGITS = 100
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNITS = frozenset(f"""
    {" ".join(f"{scale} {scale}s {scale}th {scale}ths" for scale in _SCALES)} half halves quarter third thirds fourth
    fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths zero one two three four
    five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
    thirty forty fifty sixty seventy eighty ninety and or but not no nor to than least most over under above below about
    between plus minus negative point squared cubed factorial mod modulo base pi sqrt sin cos tan log if unless bn mn
    mln k i e d j x y z
""".split())  # fmt: skip
"""Words beside a number that may make another number of it. Dozens are a unit: who asks for them is told "7 dozen"."""
_LETTER_UNITS = frozenset("mghslLNJWVACF")
"""Single letters that are units where they are set upright; elsewhere a letter may be a variable."""

DIGITS = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))"
    r"(?:[eE][+-]?[0-9]{1,2}(?![0-9]))?"
)
VALUE = rf"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?(?P<top>{DIGITS})(?:\s*/\s*(?P<under>{DIGITS}))?"
SCALE = rf"(?P<scale>(?:[\s-]+(?:{'|'.join(_SCALES)})s?\b){{0,3}})"
_RAISED = r"\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9])"
_TAIL = rf"(?:[²³]|{_RAISED})?\.?"
# Two letters may be two variables: of those only units and small words count.
_FIRST = r"(?:[A-Za-z]{3,}|mm|cm|dm|km|kg|mg|mL|ml|cl|dl|ft|lb|oz|hr|yd|mi|in|pm|am|GB|MB|Hz|kW|MW|sq|of|at|by|on|is)"
_ATTACHED = r"(?:mm|cm|km|kg|mg|mL|ml|ft|lbs?|oz|hrs?|mins?|mph|kph|cents?)"
_NEXT = r"(?:\s*/\s*[A-Za-z]+|[\s-]+(?:[A-Za-z]{2,}|a)(?![A-Za-z]))"
_UNIT = rf"(?:\s+{_FIRST}|{_ATTACHED})(?![A-Za-z]){_TAIL}(?:{_NEXT}{_TAIL})*"
_NUMBER = re.compile(rf"\s*(?:unit\s+)?(?P<sign>[+-])?\s*{VALUE}{SCALE}(?P<unit>{_UNIT})?\s*[.,;]?\s*", re.I)

_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,]\s*|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_TEXT = re.compile(
    rf"\\(?:text(?:bf|rm|it|sf)?|mbox|math(?:rm|bf|sf|it)|operatorname)\s*\{{(?P<words>[^{{}}]*)\}}(?P<raised>{_RAISED})?"
)
_CHOICE = re.compile(r"\s*\([A-E]\)\s*")
_DRESS = re.compile(
    r"\\[!,;:> $%()\[\]]|\\(?:q?quad|left|right|displaystyle|textstyle|degree)(?![A-Za-z])|[~$%€£\u00a0\u2009\u202f]"
    r"|(?:°|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])))\s*(?:[CF](?![A-Za-z]))?"
)
_POWER = re.compile(
    rf"(?<![0-9A-Za-z_.,^{{])(?:(?P<factor>{DIGITS})\s*(?:\\times|\\cdot|[×·x])\s*)?"
    r"10\s*\^\s*(?:\{\s*(?P<exponent>-?[0-9]{1,2})\s*\}|(?P<digit>[0-9])(?![0-9]))"
)
_FRACTION = re.compile(
    rf"\\[dtc]?frac\s*(?:\{{\s*(?P<top>-?{DIGITS})\s*\}}|(?P<over>[0-9]))"
    rf"\s*(?:\{{\s*(?P<bottom>{DIGITS})\s*\}}|(?P<under>[0-9]))"
)
_BRACKETS = re.compile(r"\s*(?:\((?P<round>[^(),]*)\)|\{(?P<curly>[^{}]*)\})\s*\.?\s*")
_EQUALS = re.compile(r"\\approx(?![A-Za-z])|≈")
_HELD = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\([^()]*\)|\{[^{}]*\}")
# On the left of the last equals sign: another relation, or a second answer.
_NO_EQUATION = re.compile(
    r"[<>!≤≥≠±;]|(?<!\\),|\\\\|\\(?:leq?|geq?|neq?|lt|gt|not|pm|in|q?quad)(?![A-Za-z])|\b(?:and|or)\b"
)


def plain_number(text: str) -> Fraction | None:
    """Return the value of a text that is one integer or decimal, in any dress; None for anything else.

    Separators, dollar, per cent and degree signs, brackets around it and a unit behind it are left aside; number words
    behind it count ("5 million").
    """
    found = _read(text)
    is_plain = found is not None and not found["under"] and "e" not in found["top"].lower()
    return value(found) if found and is_plain else None


def number(text: str) -> Fraction | None:
    """Return the value of a text that is one number: as plain_number, and fractions, mixed numbers, powers of ten."""
    found = _read(text)
    return value(found) if found else None


def right_side(text: str) -> str | None:
    """Return what stands behind the last equals sign, or all of a text without one; None if it is no one equation."""
    left, sign, right = _EQUALS.sub("=", _TEXT.sub(_plain_words, text)).rpartition("=")
    return None if sign and _NO_EQUATION.search(_HELD.sub("", left)) else right


def undressed(text: str) -> str:
    """Return a text with LaTeX words, spaces, signs, powers of ten and fractions written plainly."""
    shown = _TEXT.sub(_plain_words, _GROUPED.sub(",", text.replace("−", "-")))
    shown = _DRESS.sub(" ", shown.replace("-\\$", "-").replace("-$", "-"))
    shown = _POWER.sub(lambda it: f"{it['factor'] or 1}e{it['exponent'] or it['digit']}", shown)
    return _FRACTION.sub(lambda it: f" {it['top'] or it['over']}/{it['bottom'] or it['under']} ", shown)


def value(found: re.Match[str]) -> Fraction | None:
    """Return the value of a match of VALUE and SCALE with a group `sign`; None if it has none or is too long."""
    parts = [(found[name] or given).replace(",", "") for name, given in (("whole", "0"), ("top", "0"), ("under", "1"))]
    if max(map(len, parts)) > MAX_DIGITS:
        return None
    whole, top, under = map(Fraction, parts)
    # "3 7/2" may be a product.
    if under == 0 or (found["whole"] and top >= under):
        return None
    size = whole + top / under
    for word in found["scale"].lower().replace("-", " ").split():
        size *= _SCALES[word.removesuffix("s")]
    return -size if found["sign"] == "-" else size


def _read(text: str) -> re.Match[str] | None:
    shown = undressed(text)
    if len(shown) > 2 * MAX_DIGITS:
        return None
    # "(1,234)" may be a pair: brackets around a comma stay, and are no number.
    while brackets := _BRACKETS.fullmatch(shown):
        shown = brackets["curly"] if brackets["round"] is None else brackets["round"]
    found = _NUMBER.fullmatch(shown)
    return None if found is None or _has_no_unit(found["unit"] or "") else found


def _plain_words(found: re.Match[str]) -> str:
    """Words set upright: a number or a word that may change one stays, anything else is a unit."""
    words, letters = found["words"], re.findall(r"[A-Za-z]+", found["words"])
    if any(c.isdigit() for c in words):
        return f"{words}{found['raised'] or ''}"
    if not letters or _CHOICE.fullmatch(words):
        return f" {'' if letters else words} {found['raised'] or ''}"
    is_unit = not _has_no_unit(words) if len("".join(letters)) > 1 else letters[0] in _LETTER_UNITS
    return " unit " if is_unit else f" {words} {found['raised'] or ''}"


def _has_no_unit(words: str) -> bool:
    return not _NO_UNITS.isdisjoint(re.findall(r"[a-z]+", words.lower()))


WORKER = Path(__file__).with_name("worker.py")
START_S, ANSWER_S = 120.0, 15.0
MOST_CHARACTERS = 2000
"""Of a text without a boxed answer, so much of its end is searched."""


def can_compare() -> bool:
    """Return whether math-verify is installed."""
    return find_spec("math_verify") is not None


class Algebra:
    """Tells whether a text states an answer; the process starts with the first question."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.answer_s = answer_s
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(1)

    def states(self, answer: str, given: str) -> bool | None:
        """Return whether `given` states the `answer` (both LaTeX); None if that cannot be told in time or memory.

        Raises JudgeError if math-verify cannot be started at all.
        """
        process = self._process or self._start()
        question = json.dumps({"answer": answer, "given": given[-MOST_CHARACTERS:]})
        try:
            assert process.stdin is not None
            process.stdin.write(question + "\n")
            process.stdin.flush()
            reply = self._read(process, self.answer_s)
        except (OSError, OutOfTime):
            reply = ""
        if reply not in ("true", "false", "null"):
            self._stop()
        return {"true": True, "false": False}.get(reply)

    def close(self) -> None:
        """End the process; closing twice is fine."""
        self._stop()
        self._reader.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        # -P: a file of the current folder that bears the name of a module is not imported.
        command = [sys.executable, "-P", str(WORKER)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="utf-8")
        try:
            ready = self._read(self._process, START_S) == "ready"
        except OutOfTime:
            ready = False
        if not ready:
            self._stop()
            raise JudgeError("math-verify cannot be started; try: pip install --upgrade 'flipsearch[reasoning]'.")
        return self._process

    def _read(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        return self._reader.submit(process.stdout.readline).result(seconds).strip()

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        self._process = None
