"""Prompt sets: the built-in ones and the user's files, as prompts with kind, category and split.

    prompt_sets/*.csv, PATH[:column] --read--> rows --labels--> Prompts --clusters--> splits in nested order

A new built-in set is one file, prompt_sets/NAME.csv, with the columns text and kind and, if they apply, category,
borderline, split and group.
"""

import hashlib
import heapq
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from flipsearch.config import ModelConfig
from flipsearch.core.errors import PromptError
from flipsearch.core.progress import announce
from flipsearch.core.records import SPLITS, Kind, Prompt, Split, content_id
from flipsearch.prompts.files import (
    CATEGORY_COLUMNS,
    COMPANION_COLUMNS,
    TEXT_COLUMNS,
    UNSEEN,
    Table,
    built_in_files,
    cell,
    check_name,
    fetch,
    file_hash,
    is_here,
    is_missing,
    plain_name,
    prompt_cache,
    read_table,
    split_column,
    text_cell,
)
from flipsearch.prompts.formats import Row
from flipsearch.prompts.known_sets import BY_NAME, LEFT_OUT, KnownSet, SetFile, files_of, recognise
from flipsearch.prompts.rows import PROMPT_LABELS, ChatPrompt, LabelRouter, read_request
from flipsearch.prompts.splitting import SHARES, assign_splits, cached_clusters, first_of_each_kind

FOLDER = "prompt_sets"
MAX_KEPT = 50_000
"""Prompts of each kind that a command works on at most: of more, these many are taken at random, by their text."""
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
OF_GROUPS = "prompts of one group stay in one split, and intervals count the groups"
FIRST_ROWS = 100
"""Rows that are looked at to distinguish a public set from other files with its columns."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts ready for a study: labelled, free of duplicates, each with a split, in nested order."""

    name: str
    """The set's name, or the names of the files joined by "+"."""
    prompts: tuple[Prompt, ...]
    """Split by split in nested order: every prefix of a split is representative of it."""
    notes: tuple[str, ...] = ()

    @property
    def notes_beside_groups(self) -> tuple[str, ...]:
        """The notes without those on groups, which a study says, where splits are made."""
        return tuple(note for note in self.notes if not note.endswith(OF_GROUPS))

    @property
    def prompts_id(self) -> str:
        """Content hash of all prompts and their splits."""
        return content_id("prompts", [[prompt.prompt_id, prompt.split] for prompt in self.prompts])


def prompts_of(config: ModelConfig) -> PromptSet:
    """Return the prompts that a command's settings name; raises PromptError as `load_prompts` does."""
    return load_prompts(config.prompts, harmful=config.harmful, benign=config.benign)


def prompts_of_split(prompts: PromptSet, split: Split | Literal["all"], num: int | None) -> tuple[Prompt, ...]:
    """Return up to `num` prompts of each kind and set in a split, in nested order; PromptError without any."""
    in_split = [prompt for prompt in prompts.prompts if split in ("all", prompt.split)]
    if not in_split:
        has = ", ".join(f"{num} {split}" for split, num in Counter(p.split for p in prompts.prompts).items())
        raise PromptError(
            f"no prompt of '{prompts.name}' is set aside for split '{split}' (it has: {has}). "
            "Give --split all if neither search nor training saw these prompts, or name other files."
        )
    return first_of_each_kind(in_split, num, of_each_set=True)


def load_prompts(
    name: str | None = None,
    *,
    harmful: str | Sequence[str] = (),
    benign: str | Sequence[str] = (),
) -> PromptSet:
    """Return a built-in set, files, or both together, as one set with splits.

    `name` is a built-in set or a file with a label column; `harmful` and `benign` are files as `PATH[:column]`, of
    which the rows of that kind are taken. Files are csv, tsv, json, jsonl, txt or parquet (or .gz), local, `https://…`
    or `hf://datasets/…`; a hub dataset is `ORG/NAME/CONFIG/SPLIT`. A public set is named as `list_sets` lists it.
    Raises PromptError for an unknown set, a file that cannot be used, an unknown label, or one text of both kinds.
    """
    # A string is a sequence of strings too: without this each letter would be taken for a file.
    harmful, benign = ([specs] if isinstance(specs, str) else specs for specs in (harmful, benign))
    built_in = built_in_files(FOLDER)
    announce("reading the prompts")
    kept = _KeptPrompts()
    sources = list(_load(name, None, kept)) if name else []
    sources += [source for spec in harmful for source in _load(spec, "harmful", kept)]
    sources += [source for spec in benign for source in _load(spec, "benign", kept)]
    if not sources:
        raise PromptError(f"no prompts given: name a set ({', '.join(built_in)}), or files of prompts.")
    distinct = kept.prompts()
    announce(f"splitting {len(distinct):,} prompts, near-duplicates together")
    prompts = assign_splits(distinct, cached_clusters)
    notes = [
        note
        for source in sources
        for note in source.notes
        if not (source.name in built_in and note.endswith(OF_GROUPS))  # which is so in each study of the set
    ]
    for source in sources:
        if source.name not in built_in:
            tally = ", ".join(f"{count} x {label}" for label, count in source.labels.items())
            notes.append(f"{source.name}: {tally}")
    notes += kept.notes()
    # A file that fixes every split may well leave some out.
    if any(prompt.split is None for prompt in distinct):
        empty = [split for split in SHARES if split not in {prompt.split for prompt in prompts}]
        notes += [f"split '{split}' is empty: too few prompts differ enough to fill it" for split in empty]
    return PromptSet("+".join(source.name for source in sources), tuple(prompts), tuple(notes))


def list_sets() -> dict[str, dict[str, int]]:
    """Return the built-in sets with their numbers of harmful, benign and borderline prompts."""
    counts = {}
    for name in built_in_files(FOLDER):
        kept = _KeptPrompts()
        list(_load(name, None, kept))
        counts[name] = count_kinds(kept.prompts())
    return counts


def count_kinds(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Return the numbers of harmful, benign and (among the benign) borderline prompts."""
    kinds = Counter(prompt.kind for prompt in prompts)
    num_borderline = sum(prompt.borderline for prompt in prompts)
    return {"harmful": kinds["harmful"], "benign": kinds["benign"], "borderline": num_borderline}


@dataclass(slots=True)
class _Source:
    """What was read from a built-in set or one file."""

    name: str
    labels: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class _KeptPrompts:
    """Distinct prompts, MAX_KEPT of each kind at most: those with the least hashes, whatever the order of the rows.

    Texts that differ in blanks, unseen characters or their Unicode form alone count as one, and the first is kept.
    """

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[str, Prompt]] = {}
        self.largest: dict[Kind, bytes] = {}
        """Hash from which on prompts of a kind are not kept."""
        self.num_seen: Counter[Kind] = Counter()
        self.num_repeats = self.num_empty = self.num_clashes = 0
        self.first_clash = ""

    def add(self, place: str, prompt: Prompt) -> None:
        self.num_seen[prompt.kind] += 1
        spelling = "\x1f".join([*(content for _, content in prompt.turns), prompt.text])
        if not spelling.isascii():
            spelling = UNSEEN.sub("", unicodedata.normalize("NFC", spelling))
        key = hashlib.sha256(" ".join(spelling.split()).encode()).digest()
        known = self.held.get(key)
        if known is not None:
            if known[1].kind != prompt.kind:
                self.num_clashes += 1
                self.first_clash = self.first_clash or f"{known[1].kind} at {known[0]}, {prompt.kind} at {place}"
            self.num_repeats += 1
        elif key < self.largest.get(prompt.kind, b"\xff" * 33):
            self.held[key] = place, prompt
            if len(self.held) > 4 * MAX_KEPT:
                self._shed()

    def _shed(self) -> None:
        for kind in ("harmful", "benign"):
            keys = [key for key, (_, prompt) in self.held.items() if prompt.kind == kind]
            if len(keys) > MAX_KEPT:
                self.largest[kind] = heapq.nsmallest(MAX_KEPT + 1, keys)[-1]
                for key in keys:
                    if key >= self.largest[kind]:
                        del self.held[key]

    def prompts(self) -> list[Prompt]:
        """Return the prompts in the order of the rows; PromptError if a text comes as both kinds."""
        if self.num_clashes:
            raise PromptError(
                f"{self.num_clashes} texts are given both as harmful and as benign. First: {self.first_clash}."
            )
        self._shed()
        return [prompt for _, prompt in self.held.values()]

    def notes(self) -> list[str]:
        """Return what became of the rows that are no prompt of their own."""
        notes = [f"{self.num_repeats} repeated prompts left out"] if self.num_repeats else []
        notes += [f"{self.num_empty} rows without text left out"] if self.num_empty else []
        return notes + [
            f"{MAX_KEPT:,} of {self.num_seen[kind]:,} {kind} prompts taken at random, the most that a command works on"
            for kind in self.largest
        ]


def _load(spec: str, kind: Kind | None, kept: _KeptPrompts) -> Iterable[_Source]:
    """Read a set or file into `kept`; `kind` is what the user says that it holds, None leaves that to its labels."""
    built_in = built_in_files(FOLDER) if kind is None else {}
    if spec in built_in:
        yield _read(spec, read_table(str(built_in[spec])), None, kind, None, kept)
    elif spec in BY_NAME and not is_here(spec):
        known = BY_NAME[spec]
        files = [file for file in files_of(known) if None in (kind, file.kind) or file.kind == kind]
        if not files:
            raise PromptError(f"'{spec}' has no {kind} prompts: it holds {known.holds} ones.")
        for file in files:
            source_notes, table = _fetch(known, file)
            source = _read(spec, table, None, kind or file.kind, known, kept)
            source.notes += source_notes
            yield source
    else:
        path, column = split_column(spec)
        check_name(path, {**built_in_files(FOLDER), **BY_NAME}, "prompt set")
        table = read_table(path)
        rows = islice(table.rows, FIRST_ROWS)
        first = [{plain_name(name): cell(row, name) for name in table.columns} for row in rows]
        yield _read(table.name, table, column, kind, recognise(list(first[0]), first), kept)


def _fetch(known: KnownSet, file: SetFile) -> tuple[list[str], Table]:
    if not file.address.startswith("https://"):
        table = read_table(file.address)
        return [f"{known.name}: {table.path} on the Hugging Face hub, licence {known.licence}"], table
    name = Path(urlsplit(file.address).path).name
    local = fetch(file.address, prompt_cache() / known.name / name, file.sha256)
    pin = "" if file.sha256 else f", not pinned: sha256 {file_hash(local)}"
    return [f"{known.name}: {name} from {known.home}, licence {known.licence}{pin}"], read_table(name, local)


def _read(
    name: str, table: Table, column: str | None, kind: Kind | None, known: KnownSet | None, kept: _KeptPrompts
) -> _Source:
    """Read the prompts of a table; `column` is the one that the user names, which a known set would else say."""
    wanted = known.prompt if known and not column else ()
    columns = [there for name in wanted if (there := table.find([name]))] or [table.text_column(column)]
    router = LabelRouter(table, kind, known)
    candidates = [*(known.category if known else ()), *CATEGORY_COLUMNS]
    text_names = {plain_name(text_column) for text_column in columns}
    category_column = table.find([candidate for candidate in candidates if candidate not in text_names])
    companions = [name for name in COMPANION_COLUMNS if name != plain_name(columns[0])]
    companions = ([known.context] if known.context else []) if known else companions
    context_column = None if column else table.find(companions)
    system_column = table.find(SYSTEM_COLUMNS)
    left_column, reasons = known.left_out if known and known.left_out else ("", {})
    left_column = table.find([left_column]) or ""
    source = _Source(name)
    counts: Counter[str] = Counter()
    num_rows = 0
    for row in table.rows:
        num_rows += 1
        requests = (read_request(table, row, text_column) for text_column in columns)
        if (request := next((request for request in requests if request.text), None)) is None:
            kept.num_empty += 1
            continue
        if reason := reasons.get(cell(row, left_column).lower()):
            counts[f"{reason}, left out"] += 1
            continue
        _check_label(table, row, request, router, known)
        label, row_kind = router.route(row)
        source.labels[f"{label} -> {row_kind}"] += 1
        if row_kind == LEFT_OUT or kind not in (None, row_kind):
            continue
        text = request.text
        if context_column and not request.turns and (context := text_cell(table, row, context_column)):
            counts[f"requested with the text in '{context_column}'"] += 1
            text = f"{context}\n\n---\n\n{text}"
        counts["requested with earlier turns of a chat, which judges are not shown"] += bool(request.turns)
        counts["with a system text, which is left out"] += request.has_system or bool(cell(row, system_column))
        counts["taken out of the frame '### Instruction: … ### Response:'"] += request.was_framed
        counts["with an answer after the prompt, which is left out"] += request.has_answer
        prompt = Prompt(
            text=text,
            kind=row_kind,
            category=_category(row, category_column),
            borderline=router.is_borderline(row, row_kind),
            source=name,
            split=router.split(row),
            group=cell(row, router.group_column),
            turns=request.turns,
        )
        kept.add(table.at(row), prompt)
    wanted_ends = tuple(f"-> {wanted_kind}" for wanted_kind in ([kind] if kind else ["harmful", "benign"]))
    if not any(label.endswith(wanted_ends) for label in source.labels):
        raise PromptError(_nothing_left(table, columns, kind, source.labels, num_rows))
    source.notes += _notes(table, columns, kind, source.labels, router)
    source.notes += [f"{table.name}: {count} rows {what}" for what, count in counts.items() if count]
    return source


def _check_label(table: Table, row: Row, request: ChatPrompt, router: LabelRouter, known: KnownSet | None) -> None:
    """Raise PromptError for a label beside a chat that continues after the prompt: it may speak of the answer."""
    column = router.label_column or router.flag_column
    if request.has_answer and column and not known and plain_name(column) not in PROMPT_LABELS:
        raise PromptError(
            f"{table.at(row)}: '{column}' stands beside a chat that ends in an answer, so it may label that answer. "
            "Name it prompt_label if it labels the prompts; else drop it, and give the file with --harmful or --benign."
        )


def _category(row: Row, column: str | None) -> str:
    """Return a row's category; of a list the first, of named flags the first that is set."""
    value = row.cells.get(column) if column else None
    if isinstance(value, Mapping):
        return next((str(name) for name, is_set in value.items() if is_set is True), "")
    if isinstance(value, list):
        return next((str(member).strip() for member in value if not is_missing(member)), "")
    return cell(row, column)


def _nothing_left(
    table: Table, columns: Sequence[str], kind: Kind | None, labels: Mapping[str, int], num_rows: int
) -> str:
    if not labels:
        return f"{table.path}: all {num_rows} rows are empty in column '{columns[0]}'."
    if kind is None:
        return f"{table.path}: no row is harmful or benign ({', '.join(list(labels)[:5])})."
    other_kind = "benign" if kind == "harmful" else "harmful"
    return (
        f"{table.path} was given as {kind}, but it says itself that no row is ({', '.join(list(labels)[:5])}). "
        f"Give it as {other_kind}, or name other columns if these mean something else."
    )


def _notes(
    table: Table, columns: Sequence[str], kind: Kind | None, labels: Mapping[str, int], router: LabelRouter
) -> list[str]:
    num_left_out = sum(num for label, num in labels.items() if label.endswith(f"-> {LEFT_OUT}"))
    num_other = sum(num for label, num in labels.items() if kind and not label.endswith((kind, LEFT_OUT)))
    quoted = " or ".join(f"'{column}'" for column in columns)
    others = ", ".join(
        f"'{name}'" for name in table.columns if plain_name(name) in TEXT_COLUMNS and name not in columns
    )
    beside = f" and not from {others}" if others and not router.known else ""
    notes = [f"{table.name}: prompts from column {quoted}{beside}"] if kind or beside else []
    if router.group_column and not router.known:
        notes.append(f"{table.name}: column '{router.group_column}' is read: {OF_GROUPS}")
    notes += [f"{table.name}: {note.strip()}" for note in router.notes]
    if num_other:
        notes.append(f"{table.name}: {num_other} rows of the other kind left out")
    if num_left_out:
        notes.append(f"{table.name}: {num_left_out} rows that are neither left out")
    if router.split_column is None and (column := table.find(["split"])):
        notes.append(f"{table.name}: column '{column}' names none of our splits ({', '.join(SPLITS)}) and is not used")
    return notes
