"""Prompt files as tables: where a file lies, its columns by name, its rows one by one.

    local, https, hf:// or hub dataset --locate--> local files --> Table: columns, rows

Rows are read anew each time, so a table takes no memory. Which prompts they give is for sets.py. Every error names the
file and, for data, the line.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flipsearch.core.errors import PromptError, near_names, one_line, unknown_name
from flipsearch.prompts.downloads import HUB, fetch, hub_dataset, hub_file, is_dataset, is_here
from flipsearch.prompts.formats import FILE_TYPES, Row, file_type, read_columns, read_rows

TEXT_COLUMNS = (
    "prompt", "forbidden_prompt", "goal", "behavior", "instruction", "text", "question", "query", "request",
    "prompt_text", "user_input", "user_prompt", "turns", "messages", "conversations", "conversation",
)  # fmt: skip
COMPANION_COLUMNS = ("input", "context", "contextstring", "passage", "article", "body")
"""Texts that the request beside them speaks of (Alpaca, Dolly, SQuAD, RACE, SVAMP)."""
CATEGORY_COLUMNS = (
    "category", "semanticcategory", "semantic_category", "harm_category", "type", "functionalcategory", "hazard",
    "risk_area", "harm_area", "risk_type", "risk_category", "content_policy_name", "subcategory", "sub_category",
    "violated_categories",
)  # fmt: skip

_COLUMN = re.compile(
    rf"(?P<path>.+?\.(?:{'|'.join(FILE_TYPES)})(?:\.gz)?(?:\?[^:]*)?):(?P<column>[^/\\]*)", re.IGNORECASE | re.DOTALL
)
_DATASET_COLUMN = re.compile(r"(?P<path>[\w.-]+/[\w./-]+):(?P<column>[^/\\:]*)")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a prompt file, or of the files of one hub dataset."""

    path: str
    """As the user wrote it, without the column."""
    files: tuple[tuple[Path, str], ...]
    """The local files and their types."""
    columns: tuple[str, ...]
    """All column names, in order of appearance; a repeated one is repeated."""

    @property
    def name(self) -> str:
        """The file's name without its folders; of a hub dataset the whole id."""
        return self.path if is_dataset(self.path) else re.split(r"[/\\]", _file_path(self.path))[-1]

    @property
    def rows(self) -> Iterator[Row]:
        """All rows, read from the file."""
        for file, kind in self.files:
            yield from read_rows(self.path, file, kind)

    def at(self, row: Row) -> str:
        """Return "file:line" for messages."""
        return f"{self.path}:{row.line}"

    def find(self, names: Sequence[str]) -> str | None:
        """Return the column of the first of `names` that the file has, as the file spells it; the case is ignored.

        Raises PromptError if two columns have that name: which one is meant cannot be known.
        """
        for name in names:
            columns = [column for column in self.columns if plain_name(column) == name]
            if len(columns) > 1:
                raise PromptError(f"{self.path} has {len(columns)} columns named '{name}'; rename all but one.")
            if columns:
                return columns[0]
        return None

    def text_column(self, name: str | None = None) -> str:
        """Return the column that holds the prompts: `name`, or one of TEXT_COLUMNS.

        Raises PromptError with the columns of the file if there is none.
        """
        column = self.find([plain_name(name)] if name else TEXT_COLUMNS)
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


def plain_name(column: str) -> str:
    """Return a column's name in lower case without unseen characters, its blanks as underscores."""
    return "_".join(_UNSEEN.sub("", column).lower().split())


def built_in_files(folder: str) -> dict[str, Path]:
    """Return name -> file of the built-in sets in prompt_sets/ or problem_sets/, by file name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / folder).glob("*.csv"))}


def read_set(spec: str, built_in: Mapping[str, Path], what: str) -> Table:
    """Return the table of a built-in set or of a file; raises PromptError for an unknown name."""
    if spec not in built_in:
        check_name(spec, built_in, what)
    return read_table(str(built_in.get(spec, spec)))


def check_name(spec: str, known: Mapping[str, object], what: str) -> None:
    """Raise PromptError for an unknown name that cannot be a file either."""
    if "." not in spec and "/" not in spec:
        todo = f"A file needs an ending: .{', .'.join(FILE_TYPES)}."
        raise PromptError(unknown_name(what, spec, known, todo))


def split_column(spec: str) -> tuple[str, str | None]:
    """Return (path, column) of a `PATH[:column]` spec; the colons of drives and addresses belong to the path."""
    match = None if is_here(spec) else _COLUMN.fullmatch(spec) or _DATASET_COLUMN.fullmatch(spec)
    if match is None:
        return spec, None
    if not match["column"].strip():
        raise PromptError(f"'{spec}' ends in a colon: expected PATH or PATH:COLUMN.")
    return match["path"], match["column"].strip()


def read_table(path: str, local: Path | None = None) -> Table:
    """Return the table of a file, or of the copy of it that lies at `local`.

    Raises PromptError if it is missing, empty, binary or malformed.
    """
    path, files = (path, [local]) if local else _locate(path)
    kinds = [file_type(_file_path(path)) or file_type(file.name) for file in files]
    table_files = tuple((file, kind) for file, kind in zip(files, kinds, strict=True) if kind)
    if not files or any(file.stat().st_size == 0 for file in files):
        raise PromptError(f"{path} is empty: expected a header line and at least one prompt.")
    columns = tuple(dict.fromkeys(name for file, kind in table_files[1:] for name in read_columns(path, file, kind)))
    first = read_columns(path, *table_files[0])
    table = Table(path, table_files, (*first, *(name for name in columns if name not in first)))
    if next(table.rows, None) is None:
        raise PromptError(f"{path} has a header but no rows." if columns or first else f"{path} is empty.")
    return table


def _file_path(path: str) -> str:
    """Return a path without the query of an address; PromptError for an address that none can be."""
    if not path.lower().startswith("https://"):
        return path
    try:
        parts = urlsplit(path)
    except ValueError:
        raise PromptError("the prompt file is no address that can be read: expected https://HOST/FILE.csv.") from None
    if "@" in parts.netloc:
        raise PromptError("an address with a password is refused: download the file yourself.")
    return parts.path


def _locate(path: str) -> tuple[str, list[Path]]:
    """Return a path as it is shown from now on, and its local files."""
    dataset = path.removeprefix(HUB).rstrip("/")
    if file_type(_file_path(path)) is None:
        if is_dataset(dataset):
            return hub_dataset(dataset)
        raise PromptError(
            f"unknown type of prompt file '{path}': expected a name ending in .{', .'.join(FILE_TYPES)} (or .gz), "
            "or a hub dataset, ORG/NAME/CONFIG/SPLIT."
        )
    if path.startswith(HUB):
        return path, [hub_file(path)]
    if path.lower().startswith("https://"):
        return path, [fetch(path)]
    if "://" in path:
        raise PromptError(f"cannot read '{path}': expected a local file, https:// or hf://datasets/ORG/NAME/FILE.")
    try:
        file = Path(path).expanduser()
        is_folder, is_file = file.is_dir(), file.exists()
    except (OSError, ValueError, RuntimeError) as error:  # with NUL, too long, or of an unknown user
        raise PromptError(f"cannot read prompt file '{path[:200]}': {one_line(error, 60)}.") from error
    if is_folder:
        raise PromptError(f"{path} is a folder: expected one prompt file.")
    if not is_file:
        hint = f" There is no folder '{file.parent}' either."
        if file.parent.is_dir():
            hint = near_names(file.name, (path.name for path in file.parent.iterdir() if path.is_file()))
        raise PromptError(f"no prompt file '{path}'.{hint}")
    return path, [file]


def cell(row: Row, column: str | None) -> str:
    """Return a cell as stripped text; "" if it is missing or there is no such column."""
    value = row.cells.get(column) if column else None
    if is_missing(value):
        return ""
    # Numbers come back from parquet as floats where a column has gaps: 1.0 is 1.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return text if text.isascii() else _HALF_CHARACTER.sub("\ufffd", text)


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, or NaN where a column of numbers has gaps."""
    return value is None or (isinstance(value, float) and math.isnan(value))


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
    if not text.isascii() and _HALF_CHARACTER.search(text):
        raise PromptError(f"{table.at(row)}: column '{column}' holds half a character (a lone surrogate).")
    return text.strip()


def require_local_prompts(specs: Iterable[str], named_by: str, todo: str) -> None:
    """Raise PromptError for prompts that a file names and that are neither a set by name nor files on this machine.

    `todo` says how the user names them.
    """
    for spec in specs:
        is_here = Path(spec).is_file() or Path(split_column(spec)[0]).is_file()
        if "://" in spec or ("/" in spec and not is_here):
            raise PromptError(
                f"{named_by} names the prompts '{spec}', which are not on this machine, and no file decides what is "
                f"fetched: {todo}."
            )
