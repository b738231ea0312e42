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
LINE_END = r"[\n\r\v\f\x85\u2028\u2029]"
"""What begins a new line to a reader, the line feed not alone."""
PROBE = {"prompt": "quokka", "answer": "quokka"}
"""Content that spells out nothing."""


class GuardTemplate:
    """The text of a template file, without the line break at its very end.

    Where content spells them out, `markers` are defused anywhere, `roles` ("Agent:") and the template's own lines that
    have no slot at the beginning of a line, all in any case; of lines without a letter ("---") only whole ones.
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
        begun = [*map(re.escape, roles), *map(_line_pattern, filter(None, lines))]
        # In this order: a line that is taken whole could hold another marker.
        self._spelled = (_any_of(map(re.escape, markers)), _any_of(begun, rf"(?:\A|(?<={LINE_END}))[ \t]*"))

    def render(self, content: Mapping[str, str], defuse: Callable[[str], str]) -> str:
        """Return the text with its slots filled; `defuse` does for control tokens what is done here for markers."""
        shown = {name: defuse(self._defuse(text)) for name, text in content.items()}
        return SLOT.sub(lambda slot: shown.get(slot[1], slot[0]), self.text)

    def _defuse(self, text: str) -> str:
        for spelled in self._spelled:
            text = spelled.sub(_split, text)
        return text


def _split(found: re.Match[str]) -> str:
    return re.sub(r"(?<=\S)(?=\S)", " ", found[0], count=1)


def _any_of(patterns: Iterable[str], before: str = "") -> re.Pattern[str]:
    longest_first = sorted(patterns, key=len, reverse=True)
    return re.compile(rf"{before}(?:{'|'.join(longest_first) or '(?!)'})", re.IGNORECASE)


def _line_pattern(line: str) -> str:
    """A line of the template; one without a letter is ordinary where more follows on it, e.g. in a diff or a table."""
    has_letter = any(map(str.isalpha, line))
    return re.escape(line) + ("" if has_letter else rf"(?=[ \t]*(?:{LINE_END}|\Z))")
