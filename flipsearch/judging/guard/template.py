"""A guard's prompt: a text file with slots, filled by plain replacement.

Prompt and answer are hostile. They are never read as a template: the slots of the file are filled in one pass, so that
a slot's name in the content stays what it is. Nor may they speak the template's language: where they spell out one of
its markers, a space is put inside, as it is for control tokens.
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

    `markers` are defused wherever content spells them out, `roles` at the beginning of a line ("Agent:"), both in any
    case. Raises PluginError for a file that cannot be read or has no slots {prompt} and {answer}.
    """

    def __init__(self, file: Path, markers: Iterable[str] = (), roles: Iterable[str] = ()) -> None:
        try:
            self.text = file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeError) as error:
            raise PluginError(f"cannot read the guard's template '{file}': {error}.") from error
        if missing := sorted(set(PROBE) - set(SLOT.findall(self.text))):
            raise PluginError(f"the guard's template '{file}' lacks the slot {{{missing[0]}}}.")
        self._spelled = _marker_pattern(markers, roles)

    def render(self, content: Mapping[str, str], defuse: Callable[[str], str]) -> str:
        """Return the text with its slots filled; `defuse` does for control tokens what is done here for markers."""
        shown = {name: defuse(self._defuse(text)) for name, text in content.items()}
        return SLOT.sub(lambda slot: shown.get(slot[1], slot[0]), self.text)

    def _defuse(self, text: str) -> str:
        return self._spelled.sub(_split, text)


def _split(found: re.Match[str]) -> str:
    text = found[0].lstrip()
    return found[0][: len(found[0]) - len(text)] + text[0] + " " + text[1:]


def _marker_pattern(markers: Iterable[str], roles: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, markers), key=len, reverse=True)
    named = "|".join(map(re.escape, roles))
    at_line_start = [rf"(?:\A|(?<={LINE_END}))[ \t]*(?:{named})"] if named else []
    return re.compile("|".join([*longest_first, *at_line_start]) or r"(?!)", re.IGNORECASE)
