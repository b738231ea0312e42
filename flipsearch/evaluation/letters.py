r"""The letter that a model's text chooses among lettered choices.

A boxed letter counts, else the last one that the text calls its answer, else a last line that is a letter, else the one
line that begins with a letter. Anything else chooses nothing: "A" may be an article. The text is hostile: everything
here is linear in its length.
"""

import re
import string

from flipsearch.evaluation.answers import boxed_answer

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
    said = [match for match in _SAID.finditer(text) if match["letter"].isupper()]
    if said:
        return _letter(said[-1], num_choices)
    lines = text.strip().splitlines() or [""]
    led = [match for line in lines if (match := _LED.match(line))]  # several repeat the choices, and choose none
    return _letter(_ALONE.fullmatch(lines[-1]) or (led[0] if len(led) == 1 else None), num_choices)


def _letter(match: re.Match[str] | None, num_choices: int) -> str | None:
    letter = match["letter"] if match else ""
    return letter if letter and letter in string.ascii_uppercase[:num_choices] else None
