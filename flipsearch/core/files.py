"""Files that are written whole or not at all, and text made safe for terminals and spreadsheets.

Appends (log.jsonl, events.jsonl) and databases are not written through this module.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flipsearch.core.errors import FlipsearchError, StudyError

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Leading apostrophes count too, so that a text that has its own comes back unchanged."""


@contextmanager
def atomic_write(path: Path, error: type[FlipsearchError] = StudyError) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` if the block succeeds and is removed if not.

    A reader never sees half a file. Missing folders are created. A full disk or a read-only folder raises `error`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as cause:
        why = cause.strerror or cause
        raise error(f"cannot write '{path}': {why}; free the disk or choose another folder.") from cause
    finally:
        with suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str, error: type[FlipsearchError] = StudyError) -> None:
    """Write a UTF-8 text file with `atomic_write`; line breaks stay as they are."""
    with atomic_write(path, error) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def json_text(value: Mapping[str, Any]) -> str:
    """Return indented JSON for people: non-ASCII text as it is, one line break at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def printable(text: str) -> str:
    """Return `text` with U+FFFD for every character that a terminal would obey or hide; line breaks stay.

    These are control and formatting characters (ANSI escapes, reordering marks) and lone surrogates.
    """
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def escape_formula(text: str) -> str:
    """Return `text` so that no spreadsheet runs it: with a leading apostrophe if it starts like a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """Invert `escape_formula`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text
