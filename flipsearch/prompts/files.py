"""Reads a prompt file (csv, tsv, jsonl, parquet; local or hf://) into rows, and finds its columns.

Knows bytes, rows and column names; sets.py decides which prompts they give. Every error names the file and, for data,
the line.
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

from flipsearch.core.errors import PromptError, near_names, unknown_name

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
    """Line on which the row starts (csv, jsonl), or its number from 1 (parquet)."""
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a prompt file."""

    path: str
    """As the user wrote it, without the column."""
    rows: tuple[Row, ...]

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
        """Return the column of the first of `names` that the file has, as the file spells it; the case is ignored."""
        columns = {column.strip().lower(): column for column in reversed(self.columns)}
        return next((columns[name] for name in names if name in columns), None)

    def text_column(self, name: str | None = None) -> str:
        """Return the column that holds the prompts: `name`, or one of TEXT_COLUMNS.

        Raises PromptError with the columns of the file if there is none.
        """
        column = self.find([name.lower()] if name else TEXT_COLUMNS)
        if column is not None:
            return column
        has = ", ".join(self.columns)
        if name:
            near = near_names(name.lower(), map(str.lower, self.columns))
            raise PromptError(f"{self.path} has no column '{name}'.{near} It has: {has}.")
        raise PromptError(
            f"{self.path} has no column that is known to hold prompts ({', '.join(TEXT_COLUMNS)}). "
            f"It has: {has}. Name one: {self.path}:COLUMN"
        )


def built_in_files(folder: str) -> dict[str, Path]:
    """Return name -> file of the built-in sets in prompt_sets/ or problem_sets/, by file name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / folder).glob("*.csv"))}


def read_set(spec: str, built_in: Mapping[str, Path], what: str) -> Table:
    """Return the table of a built-in set or of a file; raises PromptError for an unknown name."""
    if spec not in built_in and "." not in spec and "/" not in spec:
        todo = f"A file needs an ending: .{', .'.join(FILE_TYPES)}."
        raise PromptError(unknown_name(what, spec, built_in, todo))
    return read_table(str(built_in.get(spec, spec)))


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
        raise PromptError(f"unknown type of prompt file '{path}': expected a name ending in .{', .'.join(FILE_TYPES)}.")
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
        try:
            with HfFileSystem().open(path, "rb") as stream:
                return bytes(stream.read())
        # The hub's client raises errors of several libraries (HTTP, its own, OSError); to the user they are one.
        except Exception as error:
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise PromptError(f"cannot read '{path}' from the Hugging Face hub: {line}") from error
    if "://" in path:
        raise PromptError(f"cannot read '{path}': expected a local file or hf://datasets/ORG/NAME/FILE.")
    file = Path(path).expanduser()
    if file.is_dir():
        raise PromptError(f"{path} is a folder: expected one prompt file.")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        hint = f" There is no folder '{file.parent}' either."
        if file.parent.is_dir():
            hint = near_names(file.name, (path.name for path in file.parent.iterdir() if path.is_file()))
        raise PromptError(f"no prompt file '{path}'.{hint}") from None
    except OSError as error:
        raise PromptError(f"cannot read prompt file '{path}': {error.strerror or error}.") from error


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
    header_line = text.lstrip().splitlines()[0]
    delimiter = "\t" if path.lower().endswith(".tsv") else next((mark for mark in ",\t;" if mark in header_line), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader)
        line = reader.line_num + 1
        for fields in reader:
            if any(field.strip() for field in fields):
                if len(fields) != len(header):
                    raise PromptError(
                        f"{path}:{line} has {len(fields)} fields, expected {len(header)} as in the header: "
                        "put texts that hold the delimiter in double quotes."
                    )
                yield Row(line, dict(zip(header, fields, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise PromptError(f"{path}:{line} is not valid CSV: {error}.") from None


def _json_rows(path: str, content: bytes) -> Iterator[Row]:
    # Not str.splitlines: it also cuts at U+2028, which JSON strings may hold.
    for line, record in enumerate(_decode(path, content).split("\n"), start=1):
        if not record.strip():
            continue
        try:
            cells = json.loads(record)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PromptError(f"{path}:{line} is not valid JSON: {error}. Expected one object per line.") from None
        if not isinstance(cells, dict):
            raise PromptError(f"{path}:{line} is a JSON {type(cells).__name__}, expected an object with named columns.")
        yield Row(line, cells)


def _parquet_rows(path: str, content: bytes) -> Iterator[Row]:
    try:
        frame = pandas.read_parquet(io.BytesIO(content))
    # pyarrow raises errors of its own, OSError or ValueError for what is the same to the user: a damaged file.
    except Exception as error:
        raise PromptError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    for number, cells in enumerate(frame.to_dict("records"), start=1):
        yield Row(number, {str(name): value for name, value in cells.items()})


def cell(row: Row, column: str | None) -> str:
    """Return a cell as stripped text; "" if it is missing or there is no such column."""
    value = row.cells.get(column) if column else None
    if is_missing(value):
        return ""
    # Numbers come back from parquet as floats where a column has gaps: 1.0 is 1.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, or NaN or NA from a parquet reader."""
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def text_cell(table: Table, row: Row, column: str) -> str:
    """Return a cell's stripped text, "" if it is missing; raises PromptError if the cell is not text."""
    value = row.cells.get(column)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise PromptError(f"{table.at(row)}: column '{column}' holds {type(value).__name__}, expected text.")
    return whole_text(table, row, column, value)


def whole_text(table: Table, row: Row, column: str, text: str) -> str:
    """Return a stripped text; raises PromptError if it holds half a character (a lone surrogate)."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(f"{table.at(row)}: column '{column}' holds half a character (a lone surrogate).")
    return text.strip()
