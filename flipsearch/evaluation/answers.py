r"""The final answer in a model's text, and whether it is right: a number, the letter of a choice, or a program.

The last \boxed{} counts; without one, what follows the last #### or what the text calls its answer ("Answer: 42", "the
answer is 42"), whatever numbers come later; without that, the last number. Numbers may be written in LaTeX, with
separators, units, fractions, powers of ten and number words. They are read exactly or not at all: what may mean another
number ("5x", "3, 5", "5 and a half") gives None.

Among lettered choices a boxed letter counts, else the last one that the text calls its answer, else a last line that is
a letter, else the one line that begins with a letter. Anything else chooses nothing: "A" may be an article.

The text is hostile: everything here is linear in its length, and no number is read that is longer than an answer.

A program passes or fails the tests of its problem: both run in processes of their own (sandbox.py). It is never
imported here. Of what its process writes nothing is a result: the verdict comes from the process of the tests, which it
cannot reach.
"""

import json
import os
import re
import string
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

from flipsearch.core.errors import ConfigError, JudgeError, one_line
from flipsearch.prompts.problems import ANSWER_MARK, Problem

MAX_DIGITS = 100
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER_WORDS = frozenset(f"""
    {" ".join(f"{scale} {scale}s {scale}th {scale}ths" for scale in _SCALES)} half halves quarter third thirds fourth
    fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths zero one two three four
    five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
    thirty forty fifty sixty seventy eighty ninety and or but not no nor to than least most over under above below about
    between plus minus negative point squared cubed factorial mod modulo base pi sqrt sin cos tan log if unless bn mn
    mln k i e d j x y z
""".split())  # fmt: skip
"""Words beside a number that may change it. Dozens are a unit: the answer to "how many dozen" is "7 dozen"."""
_LETTER_UNITS = frozenset("mghslLNJWVACF")
"""Single letters that are units in upright LaTeX; elsewhere a letter may be a variable."""

DIGITS = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))"
    r"(?:[eE][+-]?[0-9]{1,2}(?![0-9]))?"
)
VALUE = rf"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?(?P<top>{DIGITS})(?:\s*/\s*(?P<under>{DIGITS}))?"
SCALE = rf"(?P<scale>(?:[\s-]+(?:{'|'.join(_SCALES)})s?\b){{0,3}})"
_EXPONENT = r"\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9])"
_UNIT_END = rf"(?:[²³]|{_EXPONENT})?\.?"
# Two letters may be two variables: of those only units and small words count.
_FIRST = r"(?:[A-Za-z]{3,}|mm|cm|dm|km|kg|mg|mL|ml|cl|dl|ft|lb|oz|hr|yd|mi|in|pm|am|GB|MB|Hz|kW|MW|sq|of|at|by|on|is)"
_ATTACHED = r"(?:mm|cm|km|kg|mg|mL|ml|ft|lbs?|oz|hrs?|mins?|mph|kph|cents?)"
_NEXT = r"(?:\s*/\s*[A-Za-z]+|[\s-]+(?:[A-Za-z]{2,}|a)(?![A-Za-z]))"
_UNIT = rf"(?:\s+{_FIRST}|{_ATTACHED})(?![A-Za-z]){_UNIT_END}(?:{_NEXT}{_UNIT_END})*"
_NUMBER = re.compile(rf"\s*(?:unit\s+)?(?P<sign>[+-])?\s*{VALUE}{SCALE}(?P<unit>{_UNIT})?\s*[.,;]?\s*", re.I)

_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,]\s*|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_TEXT = re.compile(
    rf"\\(?:text(?:bf|rm|it|sf)?|mbox|math(?:rm|bf|sf|it)|operatorname)\s*\{{(?P<words>[^{{}}]*)\}}(?P<power>{_EXPONENT})?"
)
_CHOICE = re.compile(r"\s*\([A-E]\)\s*")
_DECORATION = re.compile(
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
_BRACKETED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\([^()]*\)|\{[^{}]*\}")
# On the left of the last equals sign: another relation, or a second answer.
_NO_EQUATION = re.compile(
    r"[<>!≤≥≠±;]|(?<!\\),|\\\\|\\(?:leq?|geq?|neq?|lt|gt|not|pm|in|q?quad)(?![A-Za-z])|\b(?:and|or)\b"
)
_LAST = re.compile(rf"(?<![0-9A-Za-z_])(?<![0-9]\.)(?P<sign>-)?{VALUE}{SCALE}", re.I)
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
# cm^2, and m^2 or m/s^2 after a blank or slash: an exponent, not a number of its own.
_UNIT_POWER = re.compile(r"(?:(?<=[A-Za-z][A-Za-z])|(?<=[0-9\s/][ms]))\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9](?![0-9]))")
_STATED = re.compile(r"\banswer[\s*_]{0,8}(?:[:=]|is\b(?!\s+not\b))[\s*_:=]{0,8}", re.I)
_STATED_END = re.compile(r"\.(?:\s|$)|[;?!]|\b(?:because|since|as|which|where|check|so)\b", re.I)
MAX_STATED = 300
"""Characters that are looked at of what a text calls its answer."""
_NUM_NEIGHBORS = 24
"""Characters looked at on either side of a number in running text."""
# In running text a number beside one of these is part of something larger.
_PART_BEFORE = re.compile(
    r"(?:[\^_]\s*\{?|\\sqrt\s*(?:\[[0-9]+\])?\s*\{?|\}\s*\{|[0-9)]\s*[+*]|\S\s*/|[×·±≠≤≥]|[!<>]="
    r"|\\(?:times|cdot|div|pm|leq?|geq?|neq?|lt|gt))\s*$|(?:[0-9A-Za-z)][-–]|[0-9]:)$"
)
_PART_AFTER = re.compile(
    r"\s*\^|\s*/\s*(?:[0-9\\(]|[nxyz](?![A-Za-z]))|\s*\\(?:pi|sqrt|[dt]?frac|cdot|times|div|pm|theta|alpha|log|ln|sin|cos|tan|infty|p?mod|binom)\b"
    r"|(?:[abeijknxyzKMBT]|bn|mn|mln)(?![A-Za-z])|\s?[xyz](?![A-Za-z])|\s*[-+*×·]\s*[b-hj-z](?![A-Za-z])"
    r"|\s+(?:half|halves|thirds?|fifths?|tenths?|hundredths?|thousandths?|millionths?)\b"
    r"|\s+and\s+(?:an?|one|two|three)\s+(?:half|third|quarter|fourth|fifth)"
)


def final_number(text: str) -> Fraction | None:
    """Return the number that a text gives as its answer; a boxed one may be an equation."""
    if (boxed := boxed_answer(text)) is not None:
        right = right_side(boxed)
        return None if right is None else number(right)
    # Four hashes open a heading, too: only a number after them is an answer.
    _, mark, after = text.rpartition(ANSWER_MARK)
    marked = number(after.strip().partition("\n")[0].strip("* `")) if mark else None
    if marked is None and (stated := stated_answer(text)) is not None:
        values = (number(stated), number(right_side(stated) or ""), _number_in(stated, _LAST.search(stated)))
        marked = next((value for value in values if value is not None), None)
    if marked is not None:
        return marked
    plain = _UNIT_POWER.sub("", _plain_notation(text))
    return _number_in(plain, next(iter(deque(_LAST.finditer(plain), maxlen=1)), None))  # the last one in running text


def stated_answer(text: str) -> str | None:
    """Return what a text last calls its answer, up to the end of the sentence; None if it calls nothing so."""
    last = next(iter(deque(_STATED.finditer(text), maxlen=1)), None)
    if last is None:
        return None
    line = text[last.end() : last.end() + MAX_STATED].lstrip().partition("\n")[0]
    end = _STATED_END.search(line)
    stated = line[: end.start() if end else None].strip().strip("*`_").strip()
    return stated or None


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last \boxed{} that is closed; None if there is none."""
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


def _number_in(plain: str, last: re.Match[str] | None) -> Fraction | None:
    """Return the value of a match of _LAST in a text; None if it is part of something larger."""
    if last is None:
        return None
    before = plain[max(0, last.start() - _NUM_NEIGHBORS) : last.start()]
    after = plain[last.end() : last.end() + _NUM_NEIGHBORS]
    return None if _PART_BEFORE.search(before) or _PART_AFTER.match(after) else _value(last)


def right_side(text: str) -> str | None:
    """Return what follows the last equals sign, or the whole text without one; None unless it is one equation."""
    left, sign, right = _EQUALS.sub("=", _TEXT.sub(_plain_words, text)).rpartition("=")
    return None if sign and _NO_EQUATION.search(_BRACKETED.sub("", left)) else right


def number(text: str) -> Fraction | None:
    """Return the value of a text that is one number; None for anything else.

    Separators, dollar, per cent and degree signs, brackets around it and a unit after it are ignored. Number words
    after it count ("5 million"), and so do fractions, mixed numbers and powers of ten.
    """
    match = _match_number(text)
    return _value(match) if match else None


def plain_number(text: str) -> Fraction | None:
    """Return the value of a text that is one integer or decimal, as `number` reads it; None for anything else."""
    match = _match_number(text)
    is_plain = match is not None and not match["under"] and "e" not in match["top"].lower()
    return _value(match) if match and is_plain else None


def _match_number(text: str) -> re.Match[str] | None:
    plain = _plain_notation(text)
    if len(plain) > 2 * MAX_DIGITS:
        return None
    # "(1,234)" may be a pair: brackets around a comma stay, and are no number.
    while brackets := _BRACKETS.fullmatch(plain):
        plain = brackets["curly"] if brackets["round"] is None else brackets["round"]
    match = _NUMBER.fullmatch(plain)
    return None if match is None or _has_number_word(match["unit"] or "") else match


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value of a match of VALUE and SCALE with a group `sign`; None if it has none or is too long."""
    parts = [
        (match[name] or default).replace(",", "") for name, default in (("whole", "0"), ("top", "0"), ("under", "1"))
    ]
    if max(map(len, parts)) > MAX_DIGITS:
        return None
    whole, top, under = map(Fraction, parts)
    # "3 7/2" may be a product.
    if under == 0 or (match["whole"] and top >= under):
        return None
    size = whole + top / under
    for word in match["scale"].lower().replace("-", " ").split():
        size *= _SCALES[word.removesuffix("s")]
    return -size if match["sign"] == "-" else size


def _plain_notation(text: str) -> str:
    """Return a text with LaTeX words, spaces, signs, powers of ten and fractions written plainly."""
    plain = _TEXT.sub(_plain_words, _GROUPED.sub(",", text.replace("−", "-")))
    plain = _DECORATION.sub(" ", plain.replace("-\\$", "-").replace("-$", "-"))
    plain = _POWER.sub(lambda match: f"{match['factor'] or 1}e{match['exponent'] or match['digit']}", plain)
    return _FRACTION.sub(lambda match: f" {match['top'] or match['over']}/{match['bottom'] or match['under']} ", plain)


def _plain_words(match: re.Match[str]) -> str:
    """Return upright LaTeX words plainly: a number, or a word that may change one, stays; anything else is a unit."""
    words, letters = match["words"], re.findall(r"[A-Za-z]+", match["words"])
    if any(c.isdigit() for c in words):
        return f"{words}{match['power'] or ''}"
    if not letters or _CHOICE.fullmatch(words):
        return f" {'' if letters else words} {match['power'] or ''}"
    is_unit = not _has_number_word(words) if len("".join(letters)) > 1 else letters[0] in _LETTER_UNITS
    return " unit " if is_unit else f" {words} {match['power'] or ''}"


def _has_number_word(words: str) -> bool:
    return not _NUMBER_WORDS.isdisjoint(re.findall(r"[a-z]+", words.lower()))


_END = r"(?=[\s]*(?:[).:,;*\]}!\n]|$|because\b|since\b|as\b))"
_SAID = re.compile(
    r"\b(?:answer|choice|option)(?:\s+is)?[\s:*]{0,8}(?:option\s+|choice\s+)?[(\[*]{0,4}(?P<letter>[A-Z])" + _END, re.I
)
_ALONE = re.compile(r"[\s(\[*{]{0,8}(?:\\text[a-z]{0,2}\{)?[\s(\[*{]{0,8}(?P<letter>[A-Z])[\s)\]*}.:]{0,8}")
_LED = re.compile(r"\s*[(\[*]{0,3}(?P<letter>[A-Z])(?:[)\]*]{1,3}|[.:])(?:\s|$)")


def chosen_letter(text: str, num_choices: int) -> str | None:
    """Return the letter, or None if the text chooses none of the first `num_choices` letters."""
    boxed = boxed_answer(text)
    if boxed is not None:
        return _letter(_ALONE.fullmatch(boxed) or _LED.match(boxed), num_choices)
    matches = [match for match in _SAID.finditer(text) if match["letter"].isupper()]
    if matches:
        return _letter(matches[-1], num_choices)
    lines = text.strip().splitlines() or [""]
    led = [match for line in lines if (match := _LED.match(line))]  # several repeat the choices, and choose none
    return _letter(_ALONE.fullmatch(lines[-1]) or (led[0] if len(led) == 1 else None), num_choices)


def _letter(match: re.Match[str] | None, num_choices: int) -> str | None:
    letter = match["letter"] if match else ""
    return letter if letter and letter in string.ascii_uppercase[:num_choices] else None


SANDBOX = Path(__file__).with_name("sandbox.py")
UNSENDABLE = "UnsendableError: "
CPU_S, WALL_S = 10, 30.0
"""Seconds of work of each process, and of both together by the clock."""
PROBE = """
import os, socket
def probe():
    tries = {
        "write": lambda: open("probe", "w"), "read": lambda: os.listdir("/proc"),
        "fork": lambda: os.fork() or os._exit(0), "socket": socket.socket, "signal": lambda: os.kill(os.getppid(), 0),
    }
    able = []
    for name, attempt in tries.items():
        try:
            attempt()
            able.append(name)
        except OSError:
            pass
    return able
"""
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProgramOutcome:
    """What became of a program."""

    passed: bool
    reason: str = ""
    """Why it did not pass. Hostile text."""


def check_sandbox() -> None:
    """Raise ConfigError unless programs can be run here without files, network, processes and signals."""
    why = "it needs Linux with Landlock and seccomp"
    with suppress(JudgeError, OSError):
        outcome = run_tests(PROBE, "able = probe()\nassert not able, able")
        if outcome.passed:
            return
        why = f"a program could do what it must not ({outcome.reason})"
    raise ConfigError(
        f"programs of models cannot be run safely here: {why}. Leave programming problems out of --reasoning, or "
        "evaluate on another machine."
    )


def program_of(problem: Problem, answer: str) -> str:
    """Return the program in an answer: its last code block that defines what is tested, with what the prompt gave.

    A block that does not define it continues the prompt's code.
    """
    name = problem.entry_point
    blocks = _BLOCK.findall(answer) or [answer]
    defines = re.compile(rf"^(?:async )?(?:def|class) +{re.escape(name)}\b|^{re.escape(name)} *=", re.MULTILINE)
    whole = [block for block in blocks if not name or defines.search(block)]
    if not whole:
        return f"{problem.given_code}{blocks[-1]}"
    # Imports and helpers of the prompt are often left out of an answer.
    given = defines.split(problem.given_code)[0] if name and problem.given_code else ""
    return f"{given}\n{whole[-1]}"


def run_tests(program: str, tests: str, entry_point: str = "", wall_s: float = WALL_S) -> ProgramOutcome:
    """Return whether a program passes; JudgeError if its processes cannot be started and confined, or never meet.

    `entry_point` is what the program has to define; it may be named as one of Python's own functions.
    """
    with TemporaryDirectory(prefix="flipsearch-", ignore_cleanup_errors=True) as folder:
        pipes: tuple[int, ...] = (*os.pipe(), *os.pipe())
        calls_out, calls_in, replies_out, replies_in = pipes
        processes: list[subprocess.Popen[bytes]] = []

        def start(stdin: int, stdout: int, part: str, *descriptors: int) -> subprocess.Popen[bytes]:
            # -I: no file of the folder and nothing of the environment is imported.
            command = [sys.executable, "-I", "-B", str(SANDBOX), part, str(descriptors[0]), str(CPU_S)]
            process = subprocess.Popen(
                [*command, *map(str, descriptors[1:])],
                stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=folder, env={}, pass_fds=descriptors,
                start_new_session=True,
            )  # fmt: skip
            processes.append(process)
            return process

        try:
            start(calls_out, subprocess.DEVNULL, "program", replies_in)
            tester = start(subprocess.PIPE, subprocess.PIPE, "tests", calls_in, replies_out)
            for descriptor in pipes:
                os.close(descriptor)
            pipes = ()
            task = json.dumps({"program": program, "tests": tests, "entry_point": entry_point}).encode() + b"\n"
            verdict = _verdict(tester.communicate(task, wall_s)[0])
        except subprocess.TimeoutExpired as error:
            if not error.output:
                raise JudgeError("a program's process did not start in time.") from error
            return ProgramOutcome(False, f"not done in {wall_s:g} s")
        except OSError as error:
            raise JudgeError(f"a program's process cannot be started ({one_line(error)}).") from error
        finally:
            for descriptor in pipes:
                os.close(descriptor)
            for process in processes:
                process.kill()
                for stream in filter(None, (process.stdin, process.stdout)):
                    with suppress(OSError):
                        stream.close()
                process.wait()
    return ProgramOutcome(verdict == "passed", verdict)


def _verdict(written: bytes) -> str:
    """Return the verdict; without one the tests ran out of time or memory, or were never begun."""
    ready, _, verdict = written.partition(b"\n")
    if not ready:
        raise JudgeError("a program's process cannot be confined on this system.")
    outcome = str(json.loads(verdict)) if verdict else "out of time or memory"
    if outcome.startswith(UNSENDABLE):
        raise JudgeError(f"a programming problem cannot be judged: {outcome.removeprefix(UNSENDABLE)}")
    return outcome
