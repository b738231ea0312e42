"""Prompt files as tables: where a file is, its columns by name, its rows one by one.

    local, https, hf:// or hub dataset --locate--> local files --> Table: columns, rows

Rows are read anew each time, so a table takes no memory. Which prompts they give is for sets.py. Every error names the
file and, for data, the line. Only what the user typed, or the table of known sets names, is fetched; no file names an
address. A download is bounded in size and time, follows redirects to https alone, and is kept in the user's cache.
"""

import hashlib
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from flipsearch.core.errors import PromptError, near_names, one_line, unknown_name
from flipsearch.core.files import atomic_write, cache_folder, storable
from flipsearch.prompts.formats import FILE_TYPES, Row, file_type, read_columns, read_rows

MAX_BYTES = 2**30
DEADLINE_S = 600.0
STALL_S = 30.0
"""Longest wait for the next bytes."""
MAX_REDIRECTS = 5
HUB = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps every public dataset as parquet, CONFIG/SPLIT/NNNN.parquet."""
_DATASET = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/]+))?(?:/(?P<split>[^/]+))?")


def prompt_cache() -> Path:
    """Return the folder of fetched prompt files."""
    return cache_folder("prompts")


def fetch(url: str, keep_as: Path | None = None, sha256: str = "", client: httpx2.Client | None = None) -> Path:
    """Return the local copy of an https file, with `keep_as` fetched once; PromptError if it is not as expected."""
    if keep_as is not None and keep_as.is_file() and (not sha256 or file_hash(keep_as) == sha256):
        return keep_as
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise PromptError(f"cannot fetch {url}: HF_HUB_OFFLINE is set; unset it, or download the file yourself.")
    ending = Path(urlsplit(url).path).name[-60:]
    target = keep_as or prompt_cache() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{ending}"
    with atomic_write(target, PromptError) as partial:
        try:
            with client or httpx2.Client(timeout=httpx2.Timeout(STALL_S)) as session:
                _download(session, url, partial)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise PromptError(f"cannot fetch {url}: {one_line(error)}; is there a network?") from error
        if sha256 and (got := file_hash(partial)) != sha256:
            raise PromptError(f"{url} has changed: its sha256 is {got}, expected {sha256}; download and check it.")
    return target


def _download(session: httpx2.Client, url: str, target: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    address = url
    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(address).scheme != "https":
            raise PromptError(f"cannot fetch {url}: it leads to '{address[:200]}'; only https is followed.")
        with session.stream("GET", address, follow_redirects=False) as response:
            if response.is_redirect:
                address = urljoin(address, response.headers.get("location", ""))
                continue
            if not response.is_success:
                raise PromptError(f"cannot fetch {url}: the server answers {response.status_code}.")
            num_bytes = 0
            with target.open("wb") as file:
                for block in response.iter_bytes():
                    num_bytes += len(block)
                    if num_bytes > MAX_BYTES:
                        raise PromptError(f"{url} is longer than {MAX_BYTES:,} bytes: download it yourself.")
                    if time.monotonic() > end:
                        raise PromptError(f"{url} takes longer than {DEADLINE_S:.0f} s: download it yourself.")
                    file.write(block)
            return
    raise PromptError(f"cannot fetch {url}: more than {MAX_REDIRECTS} redirects.")


def file_hash(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hub_file(address: str) -> Path:
    """Return the local copy of hf://datasets/ORG/NAME[@REVISION]/FILE, from the hub's own cache if it is there."""
    org, _, rest = address.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (address.startswith(HUB) and org and name and file):
        raise PromptError(f"cannot read '{address}': expected hf://datasets/ORG/NAME/FILE.")
    return _from_hub(address, f"{org}/{name}", file, revision or None)


def is_dataset(spec: str) -> bool:
    """Return whether a spec has the form ORG/NAME[/CONFIG[/SPLIT]] and is no local path."""
    return bool(_DATASET.fullmatch(spec)) and not spec.startswith((".", "~")) and not is_here(spec)


def is_here(path: str) -> bool:
    """Return whether a local file or folder has this name; False for what can be no name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with NUL
        return False


def hub_dataset(spec: str) -> tuple[str, list[Path]]:
    """Return a hub dataset's ORG/NAME/CONFIG/SPLIT and its parquet files; PromptError with the names there are."""
    match = _DATASET.fullmatch(spec)
    assert match is not None  # is_dataset
    dataset = match["id"]
    try:
        listed = HfApi().list_repo_files(dataset, repo_type="dataset", revision=CONVERTED)
    except Exception as error:
        raise _hub_error(spec, dataset, error) from error
    files = [name for name in listed if name.endswith(".parquet") and name.count("/") == 2]
    config = _choose(spec, "config", match["config"], [name.split("/")[0] for name in files], "default")
    files = [name for name in files if name.split("/")[0] == config]
    split = _choose(f"{dataset}/{config}", "split", match["split"], [name.split("/")[1] for name in files], "train")
    chosen = sorted(name for name in files if name.split("/")[1] == split)
    return f"{dataset}/{config}/{split}", [_from_hub(spec, dataset, name, CONVERTED) for name in chosen]


def _choose(spec: str, what: str, given: str | None, all_names: list[str], default: str) -> str:
    names = sorted(set(all_names))
    if given in names or (given is None and names and (len(names) == 1 or default in names)):
        return given or (names[0] if len(names) == 1 else default)
    if given is None:
        todo = f"name one of {', '.join(names[:20])}: {spec}/{what.upper()}" if names else "it has no tables"
        raise PromptError(f"the hub dataset '{spec}' has {len(names)} {what}s; {todo}.")
    raise PromptError(f"'{spec}' has no {what} '{given}'.{near_names(given, names)} It has: {', '.join(names[:20])}.")


def _from_hub(spec: str, repo: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise _hub_error(spec, repo, error) from error


# The hub's client raises errors of several libraries (HTTP, its own, OSError); to the user they are one.
def _hub_error(spec: str, repo: str, error: Exception) -> PromptError:
    if isinstance(error, GatedRepoError):
        return PromptError(
            f"'{spec}' is gated: accept its terms on the hub's page of {repo}, then set HF_TOKEN to your token."
        )
    if isinstance(error, RepositoryNotFoundError):
        return PromptError(
            f"there is no file '{spec}', and no dataset {repo} on the Hugging Face hub that you may read."
        )
    return PromptError(f"cannot read '{spec}' from the Hugging Face hub: {one_line(error)}")


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
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a prompt file, or of the files of one hub dataset."""

    path: str
    """As the user wrote it, without the column."""
    files: tuple[tuple[Path, str], ...]
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
        """Return the column of the first of `names` in any case, as it is spelled; PromptError if there are two."""
        for name in names:
            columns = [column for column in self.columns if plain_name(column) == name]
            if len(columns) > 1:
                raise PromptError(f"{self.path} has {len(columns)} columns named '{name}'; rename all but one.")
            if columns:
                return columns[0]
        return None

    def text_column(self, name: str | None = None) -> str:
        """Return the column of prompts: `name`, or one of TEXT_COLUMNS; PromptError with the file's columns if none."""
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
    return "_".join(UNSEEN.sub("", column).lower().split())


def built_in_files(folder: str) -> dict[str, Path]:
    """Return name -> file of the built-in sets in prompt_sets/ or problem_sets/, by file name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / folder).glob("*.csv"))}


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
    """Return the table of a file, or of its copy at `local`; PromptError if it is missing, empty or malformed."""
    path, files = (path, [local]) if local else _locate(path)
    kinds = [file_type(_file_path(path)) or file_type(file.name) for file in files]
    table_files = tuple((file, kind) for file, kind in zip(files, kinds, strict=True) if kind)
    if not files or any(file.stat().st_size == 0 for file in files):
        raise PromptError(f"{path} is empty: expected a header line and at least one prompt.")
    columns = tuple(dict.fromkeys(name for file, kind in table_files[1:] for name in read_columns(path, file, kind)))
    first = read_columns(path, *table_files[0])
    table = Table(path, table_files, (*first, *(name for name in columns if name not in first)))
    if (row := next(table.rows, None)) is None:
        raise PromptError(f"{path} has a header but no rows." if columns or first else f"{path} is empty.")
    if kinds[0] == "txt":
        line = row.cells["text"]
        names = [plain_name(name.strip('"')) for name in re.split("[,;\t]", line)]
        is_header = all(map(re.compile(r"\w{1,40}").fullmatch, names)) and not set(names).isdisjoint(TEXT_COLUMNS)
        if is_header or line.startswith(('{"', "[{")):
            form = "a table with column names (.csv, .tsv)" if is_header else "JSON (.json, .jsonl)"
            raise PromptError(f"{path} begins like {form}, but a .txt file has one prompt per line: rename it.")
    return table


def _file_path(path: str) -> str:
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
    return storable(text)


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
    if storable(text) != text:
        raise PromptError(f"{table.at(row)}: column '{column}' holds half a character (a lone surrogate).")
    return text.strip()


def require_local_prompts(specs: Iterable[str], named_by: str, todo: str) -> None:
    """Raise PromptError for what a file names and is neither a set nor here; `todo` says how the user names it."""
    for spec in specs:
        is_here = Path(spec).is_file() or Path(split_column(spec)[0]).is_file()
        if "://" in spec or ("/" in spec and not is_here):
            raise PromptError(
                f"{named_by} names the prompts '{spec}', which are not on this machine, and no file decides what is "
                f"fetched: {todo}."
            )
