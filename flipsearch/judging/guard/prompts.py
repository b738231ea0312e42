"""A guard's prompt: a text file with slots, filled by plain replacement.

Prompt and answer are hostile. They are never read as a template: the slots of the file are filled in one pass, so that
a slot's name in the content stays what it is. Nor may they speak the template's language: where they spell out one of
its markers or lines, a space is put inside, as it is for control tokens.

What a guard can answer, what each answer says, and how probabilities become a decision.

Pure functions on numbers. Whatever the numbers are, what cannot be read is no decision: a reason instead.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flipsearch.core.errors import PluginError

SLOT = re.compile(r"\{([a-z]+)\}")
_LINE_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
LINE_END = f"[{_LINE_ENDS}]"
"""What begins a new line to a reader, the line feed not alone."""
_BLANKS = r"\t\x1f \xa0\xad\u1680\u180e\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_BLANK = f"[{_BLANKS}]*+"
"""Any number of what a reader sees as blank, or not at all."""
_INSIDE = re.compile(f"(?<=[^{_BLANKS}])(?=[^{_BLANKS}])")
_LINE = rf"(?:\A|(?<={LINE_END})){_BLANK}"
_MARKS = rf"(?:(?:_|[^\w{_LINE_ENDS}{_BLANKS}]){_BLANK}){{0,8}}"
"""What can stand before a role and does not hide it, e.g. a list's dash; few, so that a long line costs no more."""
PROBE = {"prompt": "quokka", "answer": "quokka"}
"""Content that spells out nothing."""


class GuardTemplate:
    """The text of a template file, without the line break at its very end.

    Where content spells them out, `markers` are defused anywhere, `roles` ("Agent:") and the template's own lines that
    have no slot at the beginning of a line, or behind marks there ("- Agent :"), all in any case and however blanks are
    written; of lines without a letter ("---") only whole ones.
    Raises PluginError for a file that cannot be read or has no slots {prompt} and {answer}.
    """

    def __init__(self, file: Path, markers: Iterable[str] = (), roles: Iterable[str] = ()) -> None:
        try:
            self.text = file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeError) as error:
            raise PluginError(f"cannot read the guard's template '{file}': {error}.") from error
        if missing := sorted(set(PROBE) - set(SLOT.findall(self.text))):
            raise PluginError(f"the guard's template '{file}' lacks the slot {{{missing[0]}}}.")
        lines = [line.strip() for line in self.text.split("\n") if not SLOT.search(line)]
        begun = [*roles, *(line for line in lines if _has_letter(line))]
        bare = [line for line in lines if line and not _has_letter(line)]  # ordinary where more follows, as in a table
        # In this order: a line that is taken whole could hold another marker.
        self._spelled = (
            _any_of(markers),
            _any_of(begun, _LINE + _MARKS),
            _any_of(bare, _LINE, rf"(?={_BLANK}(?:{LINE_END}|\Z))"),
        )

    def render(self, content: Mapping[str, str], defuse: Callable[[str], str]) -> str:
        """Return the text with its slots filled; `defuse` does for control tokens what is done here for markers."""
        shown = {name: defuse(self._defuse(text)) for name, text in content.items()}
        return SLOT.sub(lambda slot: shown.get(slot[1], slot[0]), self.text)

    def _defuse(self, text: str) -> str:
        for spelled in self._spelled:
            text = spelled.sub(_split, text)
        return text


def _split(found: re.Match[str]) -> str:
    return found[0].removesuffix(found[1]) + _INSIDE.sub(" ", found[1], count=1)


def _any_of(texts: Iterable[str], before: str = "", after: str = "") -> re.Pattern[str]:
    patterns = sorted(map(_pattern, texts), key=len, reverse=True)
    return re.compile(rf"{before}({'|'.join(patterns) or '(?!)'}){after}", re.IGNORECASE)


def _pattern(text: str) -> str:
    """A text with blanks of any kind and number for its own, and before its colons."""
    words = [re.escape(word).replace(":", f"{_BLANK}:") for word in re.split(r"\s+", text)]
    return f"[{_BLANKS}]++".join(words)


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


MIN_MASS = 0.9
"""Least probability that a guard must put on its possible answers; below, it is not answering the question."""
ROUNDING = 1e-3
"""How far beyond 1 rounding may carry a mass."""
DIGITS = 4
"""Decimals of a probability that are kept: sums of another order differ further behind, and verdicts must not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which a guard can go on."""

    text: str
    """What it writes, with what stands before it on the line: " Safe" after "Safety:"."""
    unsafe: float
    """How unsafe this says the exchange is, in [0, 1]."""
    refuses: float | None = None
    """How much this says that the exchange is a refusal, in [0, 1]; None if it does not tell."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a guard writes further, after the likeliest of its answers before."""

    prefix: str
    """What stands before this answer: the line break and the line's beginning."""
    answers: tuple[Answer, ...]
    """The possible answers."""
    known: tuple[tuple[str, str], ...] = ()
    """(answer before, answer here) that its format fixes, so that they need not be asked."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How likely each of a guard's answers is, among them."""

    probabilities: tuple[float, ...]
    """One an answer, in order; their sum is 1."""
    mass: float
    """Probability of any of the answers, in (0, 1]."""

    @property
    def likeliest(self) -> int:
        """Number of the likeliest answer, the first of equals."""
        return self.probabilities.index(max(self.probabilities))

    def mean(self, values: Sequence[float]) -> float:
        """Return the expected value, rounded to DIGITS, of one value in [0, 1] an answer."""
        expected = math.fsum(p * value for p, value in zip(self.probabilities, values, strict=True))
        return min(1.0, max(0.0, round(expected, DIGITS)))


def constants() -> tuple[float, ...]:
    """Return what of this module can change a decision: it belongs into a judge's identity."""
    return MIN_MASS, ROUNDING, DIGITS


def decide(log_probs: Sequence[Sequence[float]], min_mass: float = MIN_MASS) -> Decision | str:
    """Return the decision told by the natural log probabilities of each answer's tokens, or why there is none."""
    sums = [sum(one) for one in log_probs]
    if any(math.isnan(one) for one in sums):
        return "the guard's probabilities are no numbers"
    if any(one > ROUNDING for one in sums):
        return "the guard's probabilities are above 1"
    weights = [math.exp(min(0.0, one)) for one in sums]
    mass = math.fsum(weights)
    if mass > 1 + ROUNDING:
        return "the guard's probabilities add up to more than 1"
    rounded = min(1.0, round(mass, DIGITS))
    if rounded < min_mass or mass <= 0:
        return f"label mass {rounded:.4f} is below {min_mass:g}: the guard does not answer in its format"
    return Decision(tuple(one / mass for one in weights), rounded)
