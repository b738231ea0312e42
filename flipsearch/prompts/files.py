"""Reads a prompt file (csv, tsv, jsonl, parquet, local or hf://) into rows, and finds its columns.

Knows bytes, rows and column names; which prompts come out of them is decided in prompts.py. Every error names the file
and, for data, the line.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from huggingface_hub import HfFileSystem

from flipsearch.core.errors import PromptError, near_names

FILE_TYPES = ("csv", "tsv", "jsonl", "ndjson", "parquet")
TEXT_COLUMNS = (
    "text", "prompt", "forbidden_prompt", "goal", "behavior", "question", "instruction", "query", "request",
)  # fmt: skip
CATEGORY_COLUMNS = ("category", "semanticcategory", "semantic_category", "harm_category", "type", "functionalcategory")

_COLUMN = re.compile(rf"(?P<path>.+?\.(?:{'|'.join(FILE_TYPES)})):(?P<column>[^/\\]*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    line: int
    """Line on which it starts (csv, jsonl) or number of the row, from 1 (parquet)."""
    cells: Mapping[str, Any]
    """Column name -> value, as in the file."""


@dataclass(frozen=True, slots=True)
class Table:
    """A prompt file, read."""

    path: str
    """As the user wrote it, without the column."""
    rows: tuple[Row, ...]
    """At least one."""

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return re.split(r"[/\\]", self.path)[-1]

    @property
    def columns(self) -> list[str]:
        """All column names, in order of appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row.cells))

    def at(self, row: Row) -> str:
        """Return "file:line" for messages."""
        return f"{self.path}:{row.line}"

    def find(self, names: Sequence[str]) -> str | None:
        """Return the file's own spelling of the first of `names` that it has, whatever the case."""
        spelling = {column.strip().lower(): column for column in reversed(self.columns)}
        return next((spelling[name] for name in names if name in spelling), None)

    def text_column(self, wanted: str | None = None) -> str:
        """Return the column that holds the prompts; raises PromptError naming what the file has."""
        found = self.find([wanted.lower()] if wanted else TEXT_COLUMNS)
        if found is None:
            has = ", ".join(self.columns)
            if wanted:
                near = near_names(wanted.lower(), map(str.lower, self.columns))
                raise PromptError(f"{self.path} has no column '{wanted}'.{near} It has: {has}.")
            raise PromptError(
                f"{self.path} has no column that is known to hold prompts ({', '.join(TEXT_COLUMNS)}). "
                f"It has: {has}. Name one: {self.path}:COLUMN"
            )
        return found


def split_column(spec: str) -> tuple[str, str | None]:
    """Return (path, column) of a `PATH[:column]` spec; the colons of drives and hf:// belong to the path."""
    match = None if Path(spec).is_file() else _COLUMN.fullmatch(spec)
    if match is None:
        return spec, None
    if not match["column"].strip():
        raise PromptError(f"'{spec}' ends in a colon: expected PATH or PATH:COLUMN.")
    return match["path"], match["column"].strip()


def read_table(path: str) -> Table:
    """Return all rows of a file; raises PromptError if it is missing, empty, binary or malformed."""
    file_type = path.rpartition(".")[2].lower()
    if file_type not in FILE_TYPES:
        raise PromptError(
            f"cannot tell the type of prompt file '{path}': expected a name ending in .{', .'.join(FILE_TYPES)}."
        )
    content = _read_bytes(path)
    if not content.strip():
        raise PromptError(f"{path} is empty: expected a header line and at least one prompt.")
    readers = {"parquet": _parquet_rows, "jsonl": _json_rows, "ndjson": _json_rows}
    rows = tuple(readers.get(file_type, _csv_rows)(path, content))
    if not rows:
        raise PromptError(f"{path} has a header but no rows.")
    return Table(path, rows)


def _read_bytes(path: str) -> bytes:
    if path.startswith("hf://"):
        return _read_hub(path)
    if "://" in path:
        raise PromptError(f"cannot read '{path}': expected a local file or hf://datasets/ORG/NAME/FILE.")
    file = Path(path).expanduser()
    if file.is_dir():
        raise PromptError(f"{path} is a folder: expected one prompt file.")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise PromptError(f"no prompt file '{path}'.{_near_files(file)}") from None
    except OSError as error:
        raise PromptError(f"cannot read prompt file '{path}': {error.strerror or error}.") from error


def _near_files(file: Path) -> str:
    if not file.parent.is_dir():
        return f" There is no folder '{file.parent}' either."
    return near_names(file.name, (other.name for other in file.parent.iterdir() if other.is_file()))


def _read_hub(path: str) -> bytes:
    try:
        with HfFileSystem().open(path, "rb") as stream:
            return bytes(stream.read())
    # The hub's client raises errors of several libraries (HTTP, its own, OSError); to the user they are one.
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PromptError(f"cannot read '{path}' from the Hugging Face hub: {line}") from error


def _decode(path: str, content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}:{line} is not UTF-8 text: is it a binary file, or in another encoding?") from None
    if "\0" in text:
        raise PromptError(f"{path} is a binary file: expected text.")
    return text


def _csv_rows(path: str, content: bytes) -> Iterator[Row]:
    text = _decode(path, content)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # an answer may be longer than Python's 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
    line = 1
    try:
        header = next(reader)
        line = reader.line_num + 1
        for fields in reader:
            if any(field.strip() for field in fields):
                yield Row(line, _named(path, line, header, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise PromptError(f"{path}:{line} is not valid CSV: {error}.") from None


def _delimiter(path: str, text: str) -> str:
    header = text.lstrip().splitlines()[0]
    if path.lower().endswith(".tsv"):
        return "\t"
    return next((mark for mark in ",\t;" if mark in header), ",")


def _named(path: str, line: int, header: Sequence[str], fields: Sequence[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise PromptError(
            f"{path}:{line} has {len(fields)} fields, expected {len(header)} as in the header: "
            "put texts that hold the delimiter in double quotes."
        )
    return dict(zip(header, fields, strict=True))


def _json_rows(path: str, content: bytes) -> Iterator[Row]:
    # Not str.splitlines: it also cuts at U+2028, which JSON strings may hold.
    for line, record in enumerate(_decode(path, content).split("\n"), start=1):
        if record.strip():
            yield Row(line, _json_cells(path, line, record))


def _json_cells(path: str, line: int, record: str) -> dict[str, Any]:
    try:
        cells = json.loads(record)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(f"{path}:{line} is not valid JSON: {error}. Expected one object a line.") from None
    if not isinstance(cells, dict):
        raise PromptError(f"{path}:{line} is a JSON {type(cells).__name__}, expected an object with named columns.")
    return cells


def _parquet_rows(path: str, content: bytes) -> Iterator[Row]:
    try:
        frame = pandas.read_parquet(io.BytesIO(content))
    # pyarrow raises its own errors, and OSError or ValueError, for what is all one to the user: a damaged file.
    except Exception as error:
        raise PromptError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    for number, cells in enumerate(frame.to_dict("records"), start=1):
        yield Row(number, {str(name): value for name, value in cells.items()})


def cell(row: Row, column: str | None) -> str:
    """Return a cell as stripped text; "" where it is missing or there is no such column."""
    value = row.cells.get(column) if column else None
    if is_missing(value):
        return ""
    # Numbers come back from parquet as floats where a column has gaps: 1.0 is 1.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: None, or what parquet readers put there, NaN or NA."""
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def text_cell(table: Table, row: Row, column: str) -> str:
    """Return a cell's text without the blanks around it, "" where it is missing; raises PromptError for no text."""
    value = row.cells.get(column)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise PromptError(f"{table.at(row)}: column '{column}' holds {type(value).__name__}, expected text.")
    return whole_text(table, row, column, value)


def whole_text(table: Table, row: Row, column: str, text: str) -> str:
    """Return a text without the blanks around it; raises PromptError if it holds half a character."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(f"{table.at(row)}: column '{column}' holds half a character (a lone surrogate).")
    return text.strip()
