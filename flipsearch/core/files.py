"""Files and folders: the package's own, files written whole or not at all, locks, and text made safe for its readers.

Appends (log.jsonl, events.jsonl) and databases are not written through this module. A lock is portable, and the
operating system releases it when the process that holds it ends.

A context with Unicode tags reads as harmless to a reviewer and as an instruction to a model: characters that no reader
sees, or that reorder what is read, are marked for people, and counted. Joiners and variation selectors stay where
scripts and emoji need them. What a record shows of itself in Python and in a notebook is a few facts, never all of it.
"""

import errno
import html
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from flipsearch.core.errors import FlipsearchError, PluginError, StudyError
from flipsearch.core.measurements import Difference, Estimate, Rate

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


LONGEST_FACT = 200
"""Characters of a fact that are shown."""


def shortened(text: str, most: int = LONGEST_FACT) -> str:
    """Return a text in one line of at most `most` characters."""
    line = " ".join(printable(text[: 2 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def figure(value: Rate | Estimate | Difference | None) -> str:
    """Return a rate or difference in percent with its interval and n."""
    if value is None or value.value is None:
        return "not measured"
    return f"{100 * value.value:.1f} % ({100 * value.low:.0f} to {100 * value.high:.0f}, n {value.n:,})"


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table for a notebook; cells are plain text, whatever they hold."""

    def cells(row: Sequence[str], tag: str) -> str:
        style = ' style="text-align:left;white-space:pre-wrap"'
        return "<tr>" + "".join(f"<{tag}{style}>{html.escape(printable(cell))}</{tag}>" for cell in row) + "</tr>"

    head = cells(header, "th") if header else ""
    return f"<table>{head}{''.join(cells(row, 'td') for row in rows)}</table>"


class ShowsFacts:
    """A record that is shown by a few named facts."""

    __slots__ = ()

    def facts(self) -> Mapping[str, str]:
        """Return name -> what is shown of it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {', '.join(f'{name}: {shortened(text)}' for name, text in self.facts().items())}>"
        )

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b>" + html_table([(name, text) for name, text in self.facts().items()])


MARK = "\ufffd"
KINDS = {
    "tags": "\U000e0000-\U000e00ff",
    "variation selectors": "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef",
    "reordering marks": "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069",
    "zero-width": "\u00ad\u034f\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\ufeff",
    "blank letters": "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0",
    "control characters": "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a",
    "characters without a meaning": "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000e0200-\U0010ffff",
}
"""Name -> the characters of the kind, as ranges of a regular expression."""
_SCRIPT = "\u0590-\u08ff\u0900-\u109f\u1780-\u18af"
_SYMBOL = "\u00a9\u00ae\u203c-\u3299\ufe0e\ufe0f\U0001f000-\U0001faff"
_NEEDED = (
    f"(?<=[{_SCRIPT}])[\u200c\u200d](?=[{_SCRIPT}])|(?<=[{_SYMBOL}])\u200d(?=[{_SYMBOL}])"
    f"|(?<=[#*0-9{_SYMBOL}])(?<![\ufe0e\ufe0f])[\ufe0e\ufe0f]"
)
"""Joiners between letters of scripts that have them, or between emoji; one selector after an emoji or a key."""
_SEEN = {ord(character): None for character in "\t\n"}
_HIDDEN = re.compile(f"({_NEEDED})|[{''.join(KINDS.values())}]|\r(?!\n)")


def printable(text: str) -> str:
    """Return a text as every page, card, table and terminal shows it: MARK for each character that hides or reorders.

    Tabs and line breaks stay.
    """
    if text.isascii() and text.translate(_SEEN).isprintable():
        return text
    return _HIDDEN.sub(lambda match: match[1] or MARK, text)


def hidden_characters(text: str) -> dict[str, int]:
    """Return kind -> how many characters of a text `printable` would mark, most first."""
    marked = [match[0] for match in _HIDDEN.finditer(text) if not match[1]]
    kinds = {name: re.compile(f"[{ranges}]") for name, ranges in KINDS.items()}
    counts = Counter(
        next((name for name, kind in kinds.items() if kind.match(character)), "control characters")
        for character in marked
    )
    return dict(counts.most_common())


def escaped_json(text: str) -> str:
    """Return JSON with an escape for each hidden character: it is the same JSON, and a reviewer sees them."""

    def escape(match: re.Match[str]) -> str:
        if match[1] or match[0] == "\r":
            return match[0]
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))

    return _HIDDEN.sub(escape, text)
