"""A guard's prompt: a text file with slots, filled by plain replacement.

Prompt and answer are hostile. They are never read as a template: the slots of the file are filled in one pass, so that
a slot's name in the content stays what it is. Nor may they speak the template's language: where they spell out one of
its markers or lines, a space is put inside, as it is for control tokens.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flipsearch.errors import PluginError

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
