"""Prompt sets: the built-in ones and the user's files, as prompts with kind, category and split.

    prompt_sets/*.csv, PATH[:column] --read--> rows --labels routed--> Prompts --clusters--> splits in nested order

Knows labels and where they lead. An unknown label is an error: a row that went to the wrong kind would be given the
wrong context in training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flipsearch.config import ModelConfig
from flipsearch.core.errors import PromptError, unknown_name
from flipsearch.core.records import SPLITS, Kind, Prompt, Split, content_id
from flipsearch.prompts.files import CATEGORY_COLUMNS, FILE_TYPES, Table, cell, read_table, split_column, text_cell
from flipsearch.prompts.labels import LabelRouter
from flipsearch.prompts.splitting import DEFAULT_SHARES, assign_splits

SET_FOLDER = Path(__file__).parent / "prompt_sets"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts ready for a study: labelled, free of duplicates, each with a split, in nested order."""

    name: str
    """The set's name, or the names of the files."""
    prompts: tuple[Prompt, ...]
    """Split by split in nested order: every prefix of a split is representative of it."""
    num_per_label: Mapping[str, int]
    """Rows per label as the files spell it, with the kind it was routed to, e.g. "vanilla_harmful -> harmful"."""
    num_duplicates: int = 0
    """Rows left out because the same text came before."""
    num_empty: int = 0
    """Rows left out because they have no text."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the files were read."""

    @property
    def prompts_id(self) -> str:
        """Content hash of all prompts and their splits."""
        return content_id("prompts", [[prompt.prompt_id, prompt.split] for prompt in self.prompts])

    def of(self, split: Split | None = None, kind: Kind | None = None) -> tuple[Prompt, ...]:
        """Return the prompts of a split and a kind, in nested order; None takes all."""
        return tuple(prompt for prompt in self.prompts if split in (None, prompt.split) and kind in (None, prompt.kind))

    def counts(self) -> dict[str, int]:
        """Return the numbers of harmful, benign and (among the benign) borderline prompts."""
        return _counts(self.prompts)


def prompts_of(config: ModelConfig) -> PromptSet:
    """Return the prompts that a command's settings name; raises PromptError as `load_prompts` does."""
    return load_prompts(config.prompts, harmful=config.harmful, benign=config.benign)


def load_prompts(
    name: str | None = None,
    *,
    harmful: str | Sequence[str] = (),
    benign: str | Sequence[str] = (),
    shares: Mapping[Split, float] = DEFAULT_SHARES,
    seed: int = 0,
) -> PromptSet:
    """Return a built-in set, files, or both together, as one set with splits.

    `name` is a built-in set or a file with a label column; `harmful` and `benign` are files as `PATH[:column]`, of
    which the rows of that kind are taken. Files are csv, tsv, jsonl or parquet, local or `hf://datasets/…`.
    Raises PromptError for an unknown set, a file that cannot be used, an unknown label, or one text of both kinds.
    """
    sources = [_Source(name, None)] if name else []
    sources += [_Source(spec, "harmful") for spec in _specs(harmful)]
    sources += [_Source(spec, "benign") for spec in _specs(benign)]
    if not sources:
        raise PromptError(f"no prompts given: name a set ({', '.join(_set_files())}), or files of prompts.")
    loads = [_load(source) for source in sources]
    given = _distinct([placed for load in loads for placed in load.placed])
    prompts = assign_splits(given, shares, seed)
    # A file that fixes every split may well leave some out.
    unused = set(shares) - {prompt.split for prompt in prompts} if any(one.split is None for one in given) else set()
    lacking = [
        f"split '{split}' is empty: too few prompts differ enough to fill it" for split in shares if split in unused
    ]
    labels: Counter[str] = sum((load.labels for load in loads), Counter())
    num_given = sum(len(load.placed) for load in loads)
    return PromptSet(
        name="+".join(load.name for load in loads),
        prompts=tuple(prompts),
        num_per_label=dict(labels),
        num_duplicates=num_given - len(prompts),
        num_empty=sum(load.num_empty for load in loads),
        notes=(*(note for load in loads for note in load.notes), *_tally(loads, num_given - len(prompts)), *lacking),
    )


def _tally(loads: Sequence["_Load"], num_duplicates: int) -> list[str]:
    """Say what every row of the user's files became: labels as they were routed, rows that fell away."""
    notes = [
        f"{load.name}: {', '.join(f'{count} x {label}' for label, count in load.labels.items())}"
        for load in loads
        if load.name not in _set_files()
    ]
    num_empty = sum(load.num_empty for load in loads)
    notes += [f"{num_duplicates} repeated prompts left out"] if num_duplicates else []
    return notes + ([f"{num_empty} rows without text left out"] if num_empty else [])


def list_sets() -> dict[str, dict[str, int]]:
    """Return the built-in sets with their numbers of harmful, benign and borderline prompts."""
    return {name: _counts([prompt for _, prompt in _load(_Source(name, None)).placed]) for name in _set_files()}


@dataclass(frozen=True, slots=True)
class _Source:
    """One name or file asked for."""

    spec: str
    kind: Kind | None
    """What the user says that it holds; None leaves it to the label column."""


@dataclass(frozen=True, slots=True)
class _Load:
    """What came out of one source."""

    name: str
    placed: list[tuple[str, Prompt]]
    """(file:line, prompt)"""
    labels: Counter[str]
    num_empty: int
    notes: tuple[str, ...]


def _specs(given: str | Sequence[str]) -> Sequence[str]:
    # A string is a sequence of strings too: without this each letter would be taken for a file.
    return [given] if isinstance(given, str) else given


def _counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    kinds = Counter(prompt.kind for prompt in prompts)
    num_borderline = sum(prompt.borderline for prompt in prompts)
    return {"harmful": kinds["harmful"], "benign": kinds["benign"], "borderline": num_borderline}


def _set_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(SET_FOLDER.glob("*.csv"))}


def _load(source: _Source) -> _Load:
    built_in = _set_files()
    if source.kind is None and source.spec in built_in:
        return _load_table(read_table(str(built_in[source.spec])), None, None, source.spec)
    path, column = split_column(source.spec)
    if source.kind is None and "." not in path and "/" not in path:
        todo = f"A file needs an ending: .{', .'.join(FILE_TYPES)}."
        raise PromptError(unknown_name("prompt set", source.spec, built_in, todo))
    table = read_table(path)
    return _load_table(table, column, source.kind, table.name)


def _load_table(table: Table, column: str | None, kind: Kind | None, name: str) -> _Load:
    text_column = table.text_column(column)
    router = LabelRouter(table, kind)
    category_column = table.find([candidate for candidate in CATEGORY_COLUMNS if candidate != text_column.lower()])
    placed: list[tuple[str, Prompt]] = []
    labels: Counter[str] = Counter()
    num_empty = 0
    for row in table.rows:
        text = text_cell(table, row, text_column)
        if not text:
            num_empty += 1
            continue
        label, row_kind = router.route(row)
        labels[f"{label} -> {row_kind}"] += 1
        if kind in (None, row_kind):
            prompt = Prompt(
                text=text,
                kind=row_kind,
                category=cell(row, category_column),
                borderline=router.is_borderline(row, row_kind),
                source=name,
                split=router.split(row),
                group=cell(row, router.group_column),
            )
            placed.append((table.at(row), prompt))
    if not placed:
        raise PromptError(_nothing_left(table, text_column, kind, labels))
    return _Load(name, placed, labels, num_empty, tuple(_notes(table, text_column, kind, labels, router)))


def _nothing_left(table: Table, text_column: str, kind: Kind | None, labels: Mapping[str, int]) -> str:
    if not labels:
        return f"{table.path}: all {len(table.rows)} rows are empty in column '{text_column}'."
    other = "benign" if kind == "harmful" else "harmful"
    return (
        f"{table.path} was given as {kind}, but its labels say that no row is ({', '.join(labels)}). "
        f"Give it as {other}, or drop the label column."
    )


def _notes(
    table: Table, text_column: str, kind: Kind | None, labels: Mapping[str, int], router: LabelRouter
) -> list[str]:
    num_left = sum(num for label, num in labels.items() if kind and not label.endswith(kind))
    notes = [f"{table.name}: prompts from column '{text_column}'"] if kind else []
    if num_left:
        notes.append(f"{table.name}: {num_left} rows of the other kind left out")
    if router.split_column is None and (column := table.find(["split"])):
        notes.append(f"{table.name}: column '{column}' names none of our splits ({', '.join(SPLITS)}) and is not used")
    if column := table.find(["contextstring"]):
        num_with = sum(bool(cell(row, column)) for row in table.rows)
        notes.append(f"{table.name}: {num_with} rows lean on a text in '{column}', which the model is not given")
    return notes


def _distinct(placed: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """Drop repeats of a text, the first one staying; raise if a text comes as both kinds."""
    first: dict[str, tuple[str, Prompt]] = {}
    clashes: list[str] = []
    for place, prompt in placed:
        earlier, known = first.setdefault(" ".join(prompt.text.split()), (place, prompt))
        if known.kind != prompt.kind:
            clashes.append(f"{known.kind} at {earlier}, {prompt.kind} at {place}")
    if clashes:
        raise PromptError(f"{len(clashes)} texts are given both as harmful and as benign. First: {clashes[0]}.")
    return [prompt for _, prompt in first.values()]
