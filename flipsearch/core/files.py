"""Files and folders: the package's own, files written whole or not at all, locks, and text made safe for its readers.

Appends (log.jsonl, events.jsonl) and databases are not written through this module. A lock is portable, and the
operating system releases it when the process that holds it ends.
"""

import errno
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from flipsearch.core.display import escaped_json, printable
from flipsearch.core.errors import FlipsearchError, PluginError, StudyError

_FORMULA = re.compile("'*(?:[\t\r\n]|[\\s\ufeff\u200b]*[=+\\-@\uff1d\uff0b\uff0d\uff20])")
"""Blanks and full-width signs too, which some spreadsheets drop or take for the usual ones. Leading apostrophes count,
so that a text that has its own comes back unchanged."""

LONGEST_TEXT_FILE = 1 << 26
"""Bytes; what people write is shorter, and a device never ends."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def cache_folder(name: str) -> Path:
    """Return the folder `name`, which need not exist, in $FLIPSEARCH_CACHE or flipsearch/ of the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    usual = (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "flipsearch"
    return Path(os.environ.get("FLIPSEARCH_CACHE") or usual).expanduser() / name


def read_text(path: Path) -> str:
    """Return the text of a file that somebody wrote, without a byte-order mark and with plain line ends.

    Raises OSError also where it is longer than LONGEST_TEXT_FILE, and UnicodeDecodeError where it is no UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(LONGEST_TEXT_FILE + 1)
    if len(content) > LONGEST_TEXT_FILE:
        raise OSError(errno.EFBIG, f"longer than {LONGEST_TEXT_FILE >> 20} MB", str(path))
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


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


def take_lock(file: Path) -> sqlite3.Connection:
    """Hold an exclusive transaction on an empty database until closed; sqlite3.Error if that fails (`is_held`)."""
    lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def is_held(error: sqlite3.Error) -> bool:
    """Return whether an error of `take_lock` means that another process holds the lock."""
    return "locked" in str(error)


def is_taken(file: Path) -> bool:
    """Return whether a process holds the lock of `file` now; writes nothing and takes no lock."""
    if not file.is_file():
        return False
    reader = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
    try:
        reader.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        return is_held(error)
    finally:
        reader.close()
    return False


def json_text(value: Mapping[str, Any]) -> str:
    """Return indented JSON for people: non-ASCII text as it is where it can be seen, one line break at the end."""
    return escaped_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n"


def discard(stream: TextIO) -> None:
    """Send what a stream still has to flush, and all that follows, to the null device: it fails no more."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def can_be_stored(text: str) -> bool:
    """Return whether a path, a file and a database can hold `text`: no NUL, and no half of a character."""
    return "\0" not in text and not _LONE_SURROGATE.search(text)


def storable(text: str) -> str:
    """Return `text` with U+FFFD for every lone surrogate, which no file and no database can hold."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def escape_formula(text: str) -> str:
    """Return `text` so that no spreadsheet runs it: with a leading apostrophe if it starts like a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """Invert `escape_formula`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def csv_cell(value: Any) -> Any:
    """Return a value as a CSV file for people holds it; of a text, hidden characters marked, and no formula.

    A carriage return becomes a line break: a lone one may be left bare, and readers would end the row there.
    """
    if not isinstance(value, str):
        return value
    return escape_formula(printable(storable(value).replace("\r\n", "\n").replace("\r", "\n")))


PACKAGE = Path(__file__).parents[1]
RESULT_PACKAGES = ("flipsearch", "optuna", "torch", "transformers", "vllm")
"""The packages that a result can depend on."""
TRAINING_PACKAGES = ("flipsearch", "torch", "transformers", "accelerate", "peft", "bitsandbytes")


def content_folder(name: str) -> Path:
    """Return the folder contexts/ or judges/: inside an installed wheel, or beside the package in a checkout."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PluginError(f"the folder {name}/ is neither in nor beside {PACKAGE}; reinstall flipsearch.")


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version for those of `packages` that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # which --help need not wait for

    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
