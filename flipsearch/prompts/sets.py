"""Prompt sets: the built-in ones and the user's files, as prompts with kind, category and split.

    prompt_sets/*.csv, PATH[:column] --read--> rows --labels--> Prompts --clusters--> splits in nested order

A new built-in set is one file, prompt_sets/NAME.csv, with the columns text and kind and, if they apply, category,
borderline, split and group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipsearch.config import ModelConfig
from flipsearch.core.errors import PromptError
from flipsearch.core.records import SPLITS, Kind, Prompt, Split, content_id
from flipsearch.prompts.files import (
    CATEGORY_COLUMNS,
    Table,
    built_in_files,
    cell,
    read_set,
    read_table,
    split_column,
    text_cell,
)
from flipsearch.prompts.labels import LabelRouter
from flipsearch.prompts.splitting import DEFAULT_SHARES, assign_splits

FOLDER = "prompt_sets"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts ready for a study: labelled, free of duplicates, each with a split, in nested order."""

    name: str
    """The set's name, or the names of the files joined by "+"."""
    prompts: tuple[Prompt, ...]
    """Split by split in nested order: every prefix of a split is representative of it."""
    notes: tuple[str, ...] = ()
    """How the files were read: their labels, and the rows left out."""

    @property
    def prompts_id(self) -> str:
        """Content hash of all prompts and their splits."""
        return content_id("prompts", [[prompt.prompt_id, prompt.split] for prompt in self.prompts])


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
    # A string is a sequence of strings too: without this each letter would be taken for a file.
    harmful, benign = ([specs] if isinstance(specs, str) else specs for specs in (harmful, benign))
    built_in = built_in_files(FOLDER)
    sources = [_load(name, None)] if name else []
    sources += [_load(spec, "harmful") for spec in harmful] + [_load(spec, "benign") for spec in benign]
    if not sources:
        raise PromptError(f"no prompts given: name a set ({', '.join(built_in)}), or files of prompts.")
    distinct = _distinct([placed for source in sources for placed in source.placed])
    prompts = assign_splits(distinct, shares, seed)
    num_duplicates = sum(len(source.placed) for source in sources) - len(prompts)
    num_empty = sum(source.num_empty for source in sources)
    notes = [note for source in sources for note in source.notes]
    for source in sources:
        if source.name not in built_in:
            tally = ", ".join(f"{count} x {label}" for label, count in source.labels.items())
            notes.append(f"{source.name}: {tally}")
    notes += [f"{num_duplicates} repeated prompts left out"] if num_duplicates else []
    notes += [f"{num_empty} rows without text left out"] if num_empty else []
    # A file that fixes every split may well leave some out.
    if any(prompt.split is None for prompt in distinct):
        empty = [split for split in shares if split not in {prompt.split for prompt in prompts}]
        notes += [f"split '{split}' is empty: too few prompts differ enough to fill it" for split in empty]
    return PromptSet("+".join(source.name for source in sources), tuple(prompts), tuple(notes))


def list_sets() -> dict[str, dict[str, int]]:
    """Return the built-in sets with their numbers of harmful, benign and borderline prompts."""
    return {name: count_kinds([prompt for _, prompt in _load(name, None).placed]) for name in built_in_files(FOLDER)}


def count_kinds(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Return the numbers of harmful, benign and (among the benign) borderline prompts."""
    kinds = Counter(prompt.kind for prompt in prompts)
    num_borderline = sum(prompt.borderline for prompt in prompts)
    return {"harmful": kinds["harmful"], "benign": kinds["benign"], "borderline": num_borderline}


@dataclass(frozen=True, slots=True)
class _Source:
    """The prompts of one built-in set or file."""

    name: str
    placed: list[tuple[str, Prompt]]
    """(file:line, prompt)"""
    labels: Counter[str]
    num_empty: int
    notes: list[str]


def _load(spec: str, kind: Kind | None) -> _Source:
    """Read a set or file; `kind` is what the user says that it holds, None leaves that to its labels."""
    built_in = built_in_files(FOLDER) if kind is None else {}
    path, column = (spec, None) if spec in built_in else split_column(spec)
    table = read_set(path, built_in, "prompt set") if kind is None else read_table(path)
    name = path if path in built_in else table.name
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
    return _Source(name, placed, labels, num_empty, _notes(table, text_column, kind, labels, router))


def _nothing_left(table: Table, text_column: str, kind: Kind | None, labels: Mapping[str, int]) -> str:
    if not labels:
        return f"{table.path}: all {len(table.rows)} rows are empty in column '{text_column}'."
    other_kind = "benign" if kind == "harmful" else "harmful"
    return (
        f"{table.path} was given as {kind}, but its labels say that no row is ({', '.join(labels)}). "
        f"Give it as {other_kind}, or drop the label column."
    )


def _notes(
    table: Table, text_column: str, kind: Kind | None, labels: Mapping[str, int], router: LabelRouter
) -> list[str]:
    num_left_out = sum(num for label, num in labels.items() if kind and not label.endswith(kind))
    notes = [f"{table.name}: prompts from column '{text_column}'"] if kind else []
    if num_left_out:
        notes.append(f"{table.name}: {num_left_out} rows of the other kind left out")
    if router.split_column is None and (column := table.find(["split"])):
        notes.append(f"{table.name}: column '{column}' names none of our splits ({', '.join(SPLITS)}) and is not used")
    if column := table.find(["contextstring"]):
        num_with = sum(bool(cell(row, column)) for row in table.rows)
        notes.append(f"{table.name}: {num_with} rows rely on a text in '{column}', which the model is not given")
    return notes


def _distinct(placed: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """Return the prompts without repeats of a text, keeping the first; PromptError if a text comes as both kinds."""
    first: dict[str, tuple[str, Prompt]] = {}
    clashes: list[str] = []
    for place, prompt in placed:
        first_place, known = first.setdefault(" ".join(prompt.text.split()), (place, prompt))
        if known.kind != prompt.kind:
            clashes.append(f"{known.kind} at {first_place}, {prompt.kind} at {place}")
    if clashes:
        raise PromptError(f"{len(clashes)} texts are given both as harmful and as benign. First: {clashes[0]}.")
    return [prompt for _, prompt in first.values()]
