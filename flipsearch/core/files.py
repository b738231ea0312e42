"""Files that are whole or not there, and texts that a spreadsheet does not run."""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Apostrophes before the sign count too, so that a text which has its own comes back as it was."""


def guarded(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula: with an apostrophe before one that starts like one."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text
