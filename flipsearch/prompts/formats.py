"""Reads a local prompt file row by row: csv, tsv, json, jsonl, txt or parquet, each of them also gzipped.

Knows bytes, rows and column names, and nothing of prompts. A file may be larger than memory: only a .json file, which
is one value, is read whole and therefore bounded. Every error names the file and, for data, the line.
"""

import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from flipsearch.core.errors import PromptError, one_line

FILE_TYPES = ("csv", "tsv", "json", "jsonl", "ndjson", "txt", "parquet")
MAX_LINE = 2**24
"""Characters of one line or cell: longer ones are no prompts, and would fill the memory."""
MAX_JSON_BYTES = 2**28
MAX_UNPACKED_BYTES = 2**32
BATCH_ROWS = 1024
Opened = io.BufferedReader | io.BufferedRandom | gzip.GzipFile
PACKED = b"\x1f\x8b".decode("utf-8", "surrogateescape")
_BAD_BYTES = re.compile("[\udc80-\udcff]")
_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    line: int
    """Line on which the row starts (csv, jsonl, txt), or its number from 1 (json, parquet)."""
    cells: Mapping[str, Any]


def file_type(name: str) -> str | None:
    """Return the type that a file's name ends in, without .gz; None for any other name."""
    ending = name.lower().removesuffix(".gz").rpartition(".")[2]
    return ending if "." in name and ending in FILE_TYPES else None


def read_columns(shown: str, file: Path, kind: str) -> tuple[str, ...]:
    """Return all column names in order of appearance, repeated ones repeated; `shown` names the file in messages."""
    with _opened(shown, file, kind) as stream:
        if kind == "parquet":
            return tuple(_parquet(shown, stream).schema_arrow.names)
        if kind in ("csv", "tsv"):
            return tuple(_csv_records(shown, stream, kind)[0])
    return tuple(dict.fromkeys(name for row in read_rows(shown, file, kind) for name in row.cells))


def read_rows(shown: str, file: Path, kind: str) -> Iterator[Row]:
    """Yield the rows of a file; raises PromptError where it is damaged."""
    with _opened(shown, file, kind) as stream:
        if kind == "parquet":
            yield from _parquet_rows(shown, stream)
        elif kind in ("csv", "tsv"):
            yield from _csv_rows(shown, stream, kind)
        elif kind == "txt":
            lines = enumerate(_lines(shown, stream), start=1)
            yield from (Row(number, {"text": line.strip()}) for number, line in lines if line.strip())
        elif kind == "json":
            yield from _json_rows(shown, stream)
        else:
            yield from _jsonl_rows(shown, _lines(shown, stream))


@contextmanager
def _opened(shown: str, file: Path, kind: str) -> Iterator[Opened]:
    """Open a file, unpacked if it is gzipped whatever its name says, with its errors as PromptError."""
    try:
        with file.open("rb") as stream:
            is_packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            if not is_packed:
                yield stream
                return
            with gzip.GzipFile(fileobj=stream) as unpacked:
                if kind != "parquet":
                    yield unpacked
                    return
                with tempfile.TemporaryFile() as whole:  # parquet is read from its end
                    while block := unpacked.read(2**20):
                        whole.write(block)
                        if whole.tell() > MAX_UNPACKED_BYTES:
                            raise PromptError(f"{shown} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes: unpack it.")
                    yield whole
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(f"cannot read prompt file '{shown}': {getattr(error, 'strerror', '') or error}.") from error


def _lines(shown: str, stream: Opened) -> Iterator[str]:
    head = stream.peek(4)[:4]
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(head) >= 4 and (head[0] == 0) != (head[1] == 0):
        encoding = "utf-16-be" if head[0] == 0 else "utf-16-le"  # some programs write it without its mark
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    text = io.TextIOWrapper(stream, encoding, errors, newline="")
    number = size = 0
    try:
        while line := text.readline(MAX_LINE + 1):
            number, size = number + 1, size + len(line)
            if size > MAX_UNPACKED_BYTES and isinstance(stream, gzip.GzipFile):
                raise PromptError(f"{shown} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB: is it a prompt file?")
            if number == 1 and line.startswith(PACKED):
                raise PromptError(f"{shown} is gzipped twice: unpack it once.")
            if len(line) > MAX_LINE:
                raise PromptError(f"{shown}:{number} is longer than {MAX_LINE:,} characters: is it a prompt file?")
            if not line.isascii() and _BAD_BYTES.search(line):
                raise PromptError(
                    f"{shown}:{number} is not UTF-8 text: is it a binary file, or in another encoding? "
                    f"Save it as UTF-8, e.g. iconv -f CP1252 -t UTF-8."
                )
            if "\0" in line:
                raise PromptError(f"{shown} is a binary file: expected text.")
            if number == 1 and line.startswith("version https://git-lfs."):
                raise PromptError(f"{shown} is a pointer of Git LFS and not the file itself: run git lfs pull.")
            yield line.lstrip("\ufeff")
    except UnicodeError as error:
        raise PromptError(f"{shown}:{number + 1} is not {encoding.upper()} text: {one_line(error, 80)}.") from error
    finally:
        if not stream.closed:
            text.detach()  # or it would close the stream, which it does not own


def _csv_records(shown: str, stream: Opened, kind: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # an answer may be longer than Python's 128 KiB
    lines = _lines(shown, stream)
    num_blank = 0
    first = ""
    for first in lines:
        if first.strip():
            break
        num_blank += 1
    if not first.strip():
        raise PromptError(f"{shown} is empty: expected a header line and at least one prompt.")
    named = re.fullmatch(r"\"?sep=(.)\"?\s*", first)  # a line that Excel reads and writes
    if named:
        first, num_blank = next(lines, ""), num_blank + 1
    usual = "\t" if kind == "tsv" else next((mark for mark in ",\t;" if mark in first), ",")
    delimiter = named[1] if named else usual

    spaced = f"{delimiter} " in first  # "id, prompt": a quote then stands behind a blank
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=spaced)

    def records() -> Iterator[tuple[int, list[str]]]:
        line = num_blank + 1
        try:
            for fields in reader:
                yield line, fields
                line = num_blank + reader.line_num + 1
        except csv.Error as error:
            raise PromptError(f"{shown}:{line} is not valid CSV: {error}.") from None

    rest = records()
    return next(rest)[1], rest


def _csv_rows(shown: str, stream: Opened, kind: str) -> Iterator[Row]:
    header, records = _csv_records(shown, stream, kind)
    for line, fields in records:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            raise PromptError(
                f"{shown}:{line} has {len(fields)} fields, expected {len(header)} as in the header: "
                "put texts that hold the delimiter in double quotes."
            )
        yield Row(line, dict(zip(header, fields, strict=True)))


def _json_rows(shown: str, stream: Opened) -> Iterator[Row]:
    """Yield the members of an array; a file that begins with an object is read as JSON lines, which many are."""
    lines = _lines(shown, stream)
    held: list[str] = []
    size = 0
    for line in lines:
        if not held and line.strip() == "{":
            raise PromptError(
                f"{shown} is one JSON object, expected an array of texts or of objects: save the list that is in it, "
                f"e.g. with jq '.data' (or of a pandas frame: to_json(orient='records'))."
            )
        if not held and line.lstrip().startswith("{"):
            yield from _jsonl_rows(shown, chain([line], lines), start=size + 1)
            return
        held += [line] if held or line.strip() else []
        size += len(line) if held else 1
        if size > MAX_JSON_BYTES:
            raise PromptError(
                f"{shown} has more than {MAX_JSON_BYTES:,} characters: save it as .jsonl, one row per line."
            )
    if not held:
        raise PromptError(f"{shown} is empty: expected an array of texts or of objects.")
    members = _parse(shown, "".join(held), "an array of texts or of objects")
    if not isinstance(members, list):
        raise PromptError(f"{shown} is a JSON {type(members).__name__}, expected an array of texts or of objects.")
    for number, member in enumerate(members, start=1):
        yield Row(number, _cells(f"{shown}:{number}", member))


def _jsonl_rows(shown: str, lines: Iterator[str], start: int = 1) -> Iterator[Row]:
    for number, line in enumerate(lines, start=start):
        if line.strip():
            place = f"{shown}:{number}"
            yield Row(number, _cells(place, _parse(place, line, "one object per line")))


def _cells(place: str, record: Any) -> Mapping[str, Any]:
    if isinstance(record, str):
        return {"text": record}
    if not isinstance(record, dict):
        raise PromptError(f"{place} is a JSON {type(record).__name__}, expected an object with named columns.")
    return record


def _parse(place: str, text: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except KeyError as error:
        raise PromptError(f"{place} has the key '{error.args[0][:80]}' twice in one object; remove one.") from None
    # ValueError: malformed, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place} is not valid JSON: {one_line(error)}. Expected {expected}.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members; raises KeyError for a repeated key, of which `json` would keep the last."""
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        raise KeyError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return members


def _parquet(shown: str, stream: Opened) -> Any:
    try:
        return pyarrow.parquet.ParquetFile(stream)
    # pyarrow raises errors of its own, OSError or ValueError for what is the same to the user: a damaged file.
    except Exception as error:
        raise PromptError(f"{shown} cannot be read as parquet: {one_line(error)}") from error


def _parquet_rows(shown: str, stream: Opened) -> Iterator[Row]:
    number = 0
    try:
        for batch in _parquet(shown, stream).iter_batches(BATCH_ROWS):
            for cells in batch.to_pylist():
                number += 1
                yield Row(number, cells)
    except PromptError:
        raise
    except Exception as error:  # as above
        raise PromptError(f"{shown} cannot be read as parquet: {one_line(error)}") from error
