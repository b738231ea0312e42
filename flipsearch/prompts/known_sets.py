"""Public prompt sets as published: which columns they have, and which of them says what.

    table's columns --recognise--> KnownSet: prompt, kind, category, context, rows that are left out

A file is recognised by its columns, whatever its name. What a set leaves open (BeaverTails labels answers, not prompts)
stays open, and the user says what the file holds. A new set is one table of known_sets.toml.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from flipsearch.core.errors import PromptError
from flipsearch.core.records import Kind

LEFT_OUT: Literal["left out"] = "left out"
Routed = Kind | Literal["left out"]
_PUBLISHED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_MEANINGS: Mapping[str, Mapping[str, Routed]] = {
    name: {label: kind for kind, labels in by_kind.items() for label in labels}
    for name, by_kind in _PUBLISHED["meanings"].items()
}
HARMFUL_OR_NOT = _MEANINGS["harmful_or_not"]
"""The labels that public sets and users' files have for prompts."""


@dataclass(frozen=True, slots=True)
class SetFile:
    """A public file of a set."""

    address: str
    """An https address, or ORG/NAME[/CONFIG[/SPLIT]] on the Hugging Face hub."""
    kind: Kind | None = None
    """None leaves it to the labels."""
    sha256: str = ""
    """"" if none is known: the file is then taken as it comes, and its hash is noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSet:
    """One public prompt set. Column names are in lower case."""

    name: str
    columns: frozenset[str] = frozenset()
    """A file with all of these is of this set, if no set with more of them fits; none: known by name."""
    licence: str
    home: str
    prompt: tuple[str, ...]
    """The first of these columns that a row fills is its prompt."""
    kind: Kind | None = None
    """What all rows are; None if labels, the file's name or the user say so."""
    labels: Mapping[str, Mapping[str, Routed]]
    """Columns that label the prompt, best first, and what their values mean."""
    route: Callable[[Mapping[str, str]], tuple[str, Routed]] | None = None
    """Label and kind of a row, from its cells by name, where several columns say it together."""
    kind_by_name: tuple[tuple[str, Kind], ...] = ()
    """Parts of file names that give the kind of files with equal columns, unless the user says it."""
    category: tuple[str, ...] = ()
    borderline: bool = False
    """Its benign prompts are there because they look harmful."""
    context: str = ""
    """Column of a text that the prompt speaks of, which is sent with it."""
    left_out: tuple[str, Mapping[str, str]] | None = None
    """A column, and the reasons for which rows with some of its values are left out."""
    only_harmful: tuple[str, str] | None = None
    """A column and the value of the rows that are harmful, where the file is given as harmful."""
    group: str = ""
    """Column of what several rows vary: they never are in two splits."""
    first_values: tuple[str, frozenset[str]] | None = None
    """A column and its values, which distinguish this set from other files with the same columns."""
    files: tuple[SetFile, ...] = ()
    is_gated: bool = False

    def kind_of(self, file_name: str) -> Kind | None:
        """Return what all rows of a file are, or None if its name does not say."""
        lower = file_name.lower()
        return self.kind or next((kind for part, kind in self.kind_by_name if part in lower), None)

    @property
    def holds(self) -> str:
        """What is in the set, in a few words."""
        kinds = {self.kind} | {file.kind for file in self.files} | {kind for _, kind in self.kind_by_name}
        kinds |= {"harmful", "benign"} if self.route else set()
        kinds |= {kind for meanings in self.labels.values() for kind in meanings.values() if kind != LEFT_OUT}
        benign = "borderline" if self.borderline else "benign"
        texts = [text for kind, text in (("harmful", "harmful"), ("benign", benign)) if kind in kinds]
        return " and ".join(texts) or "prompts without labels"


_MODERATION = ("s", "h", "v", "hr", "sh", "s3", "h2", "v2")
_AEGIS_ANSWER = re.compile(r"^(?:Assistant|Agent|AI|Bot|Chatbot|Model|LLM):", re.MULTILINE)


def _by_any_flag(cells: Mapping[str, str]) -> tuple[str, Routed]:
    flags = [name for name in _MODERATION if cells.get(name, "").removesuffix(".0") == "1"]
    return ("flagged", "harmful") if flags else ("not flagged", "benign")


def _by_annotators(cells: Mapping[str, str]) -> tuple[str, Routed]:
    if _AEGIS_ANSWER.search(cells["text"]):
        return "with an answer, which its labels may be of", LEFT_OUT
    labels = {value.lower() for name, value in cells.items() if name.startswith("labels_") and value}
    if labels <= {"needs caution"} or ("safe" in labels and len(labels) > 1):
        return "annotators in doubt", LEFT_OUT
    return ("safe", "benign") if "safe" in labels else ("unsafe", "harmful")


def _known_set(name: str, row: Mapping[str, Any]) -> KnownSet:
    labels = {
        column: _MEANINGS[meaning] if isinstance(meaning, str) else meaning
        for column, meaning in row.get("labels", {}).items()
    }
    route = _ROUTES.get(row.get("route", ""))
    return _SET.validate_python({**row, "name": name, "labels": labels, "route": route})


_ROUTES = {"by_any_flag": _by_any_flag, "by_annotators": _by_annotators}
_SET = TypeAdapter(KnownSet)
BY_NAME: Mapping[str, KnownSet] = {name: _known_set(name, row) for name, row in _PUBLISHED["sets"].items()}
KNOWN_SETS = tuple(BY_NAME.values())


def describe(known: KnownSet) -> dict[str, str]:
    """Return what `flipsearch list prompts` says of a set: what it holds, its licence, where it is and how it comes."""
    is_file = any(file.address.startswith("https://") for file in known.files)
    hashes = [file.sha256 for file in known.files if file.sha256]
    if not known.files:
        access = "gated"
    else:
        access = ("pinned file" if hashes else "file, not pinned") if is_file else "hub dataset"
    return {
        "name": known.name,
        "description": f"{known.holds}; {known.licence}; {access}\n{known.home}",
        "holds": known.holds,
        "licence": known.licence,
        "access": access,
        "home": f"https://{known.home}",
        "files": " ".join(file.address for file in known.files),
        "sha256": " ".join(hashes),
        "columns": ", ".join(sorted(known.columns)),
    }


def recognise(columns: Sequence[str], first: Sequence[Mapping[str, str]]) -> KnownSet | None:
    """Return the set with most of the `columns` (in lower case) that the `first` rows' cells fit; None: no set."""
    fitting = []
    for known in KNOWN_SETS:
        column, values = known.first_values or ("", frozenset())
        has_values = not column or all(row.get(column, "").lower() in values for row in first)
        if known.columns and known.columns <= set(columns) and has_values:
            fitting.append(known)
    return max(fitting, key=lambda known: len(known.columns), default=None)


def files_of(known: KnownSet) -> tuple[SetFile, ...]:
    """Return the public files of a set; PromptError says how to get a set that has none."""
    if known.files:
        return known.files
    gate = "is gated: accept its terms there" if known.is_gated else "has no plain public file: get it there"
    raise PromptError(f"'{known.name}' {gate} (https://{known.home}), and give the file with --prompts.")
