"""Checks a ledger: reads every row once, writes nothing, and counts what is wrong by kind.

A ledger that cannot be opened at all (no ledger, another format) is a LedgerError; a fault is something in an opened
one that flipsearch would not have written.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from flipsearch.core.errors import one_line
from flipsearch.core.files import is_taken
from flipsearch.core.measurements import json_value
from flipsearch.core.records import ANSWER_KINDS, FINISH_REASONS, Label
from flipsearch.ledger.store import LOCK_SUFFIX, Ledger
from flipsearch.ledger.tables import (
    IN_FLIGHT,
    LABELLED,
    PREFIX_SCORES,
    ROLLOUTS,
    VERDICTS,
    check_kinds,
    checksum,
    prefix_score_of,
    rollout_of,
)

BASELINE = "baseline"
"""The key under which rollouts without a context are counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    kind: str
    count: int
    example: str
    """The first one: a rollout id, or the database's message."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Rollouts that were requested from a backend and did not come back."""

    phase: str
    count: int
    """How many are not in the ledger as finished."""
    is_running: bool
    """A process works at this ledger now; otherwise the last one ended before they came."""


@dataclass(frozen=True, slots=True)
class LedgerCheck:
    """What a ledger holds, and what is wrong with it; nothing is counted in a damaged file."""

    place: str
    num_rollouts: int = 0
    """Failed ones included."""
    num_errors: int = 0
    """Failed rollouts: kept, never served, tried again by the next run."""
    num_filtered: int = 0
    """Rollouts that an endpoint's filter or refusal field withheld: kept, never scored."""
    num_verdicts: int = 0
    num_unjudged: int = 0
    """Finished rollouts without a verdict of any judge."""
    by_model: Mapping[str, int] = field(default_factory=dict)
    by_context: Mapping[str, int] = field(default_factory=dict)
    """Context id (BASELINE for none) -> rollouts, most first."""
    by_judge: Mapping[str, int] = field(default_factory=dict)
    in_flight: InFlight | None = None
    faults: tuple[Fault, ...] = ()
    """One per kind; () for a sound ledger."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"is_sound": self.is_sound, **json_value(self)}


def check_ledger(place: Path | str) -> LedgerCheck:
    """Return what a ledger holds and what is wrong with it, writing nothing; LedgerError if it cannot be read."""
    with Ledger(place, read_only=True) as ledger:
        if damage := _damage(ledger):
            return LedgerCheck(str(place), faults=tuple(damage))
        counts = ledger.counts()
        judged = sql.exists().where(VERDICTS.c.rollout_id == ROLLOUTS.c.rollout_id)
        unjudged = sql.select(sql.func.count()).where(ROLLOUTS.c.finish_reason != "error", ~judged)
        filtered = sql.select(sql.func.count()).where(ROLLOUTS.c.finish_reason == "filtered")
        with ledger.reader() as connection:
            num_unjudged = connection.execute(unjudged).scalar_one()
            num_filtered = connection.execute(filtered).scalar_one()
        return LedgerCheck(
            place=str(place),
            num_rollouts=counts["rollouts"],
            num_errors=counts["errors"],
            num_filtered=num_filtered,
            num_verdicts=counts["verdicts"],
            num_unjudged=num_unjudged,
            by_model=_tally(ledger, ROLLOUTS.c.model_id),
            by_context=_tally(ledger, ROLLOUTS.c.context_id),
            by_judge=_tally(ledger, VERDICTS.c.judge_id),
            in_flight=_in_flight(ledger, place),
            faults=tuple(_row_faults(ledger) + _reference_faults(ledger)),
        )


def _damage(ledger: Ledger) -> list[Fault]:
    """Return what SQLite's own check finds; other databases are not checked."""
    if ledger.dialect != "sqlite":
        return []
    with ledger.reader() as connection:
        try:
            messages = list(connection.exec_driver_sql("PRAGMA integrity_check").scalars())
        except SQLAlchemyError as error:
            messages = [one_line(getattr(error, "orig", None) or error).rstrip(".")]
    lines = [line for message in messages for line in message.splitlines() if line != "ok"]
    return [Fault("the file is damaged", len(lines), lines[-1])] if lines else []


def _row_faults(ledger: Ledger) -> list[Fault]:
    """Return the faults of single rows, each row counted once, under the first kind that is true of it."""
    kinds = {ROLLOUTS: _rollout_faults, VERDICTS: _verdict_faults, PREFIX_SCORES: _prefix_score_faults}
    ids_by_kind: dict[str, list[str]] = defaultdict(list)
    for table, faults in kinds.items():
        name = table.name.replace("_", " ")
        for row in ledger.rows(table):
            id = str(next(iter(row.values())))
            try:
                check_kinds(table, row)
            except ValueError:
                ids_by_kind[f"{name} with a value of the wrong kind"].append(id)
                continue
            if fault := next(faults(row), None):
                ids_by_kind[f"{name} {fault}"].append(id)
            elif checksum(table, row) != row["checksum"]:
                ids_by_kind[f"{name} that were altered after they were written"].append(id)
    return [Fault(kind, len(ids), min(ids)) for kind, ids in ids_by_kind.items()]


def _rollout_faults(row: sql.RowMapping) -> Iterator[str]:
    if row["finish_reason"] not in FINISH_REASONS:
        yield "with an unknown finish reason"
    try:
        if rollout_of(row).rollout_id != row["rollout_id"]:
            yield "whose id is not the hash of their fields"
    except ValueError:
        yield "whose tokens cannot be unpacked"


def _verdict_faults(row: sql.RowMapping) -> Iterator[str]:
    if row["label"] not in list(Label):
        yield "with an unknown label"
    if row["kind"] not in (None, *ANSWER_KINDS):
        yield "with an unknown kind of answer"
    if row["label"] == Label.UNSCORED and row["p_unsafe"] is not None:
        yield "UNSCORED with a p_unsafe"
    if row["label"] != Label.UNSCORED and row["p_unsafe"] is None:
        yield "scored without a p_unsafe"
    if row["p_unsafe"] is not None and not 0 <= row["p_unsafe"] <= 1:
        yield "with a p_unsafe outside 0 to 1"


def _prefix_score_faults(row: sql.RowMapping) -> Iterator[str]:
    try:
        prefix_score_of(row)
    except ValueError:
        yield "whose numbers cannot be unpacked"


def _reference_faults(ledger: Ledger) -> list[Fault]:
    has_rollout = sql.exists().where(ROLLOUTS.c.rollout_id == VERDICTS.c.rollout_id)
    has_none = has_rollout.where(ROLLOUTS.c.finish_reason.in_(("error", "filtered")))
    conditions = {
        "verdicts without a rollout": ~has_rollout if LABELLED not in ledger.notes() else sql.false(),
        "verdicts that score a failed or filtered rollout": has_none & (VERDICTS.c.label != Label.UNSCORED.value),
    }
    faults = []
    for kind, condition in conditions.items():
        query = sql.select(sql.func.count(), sql.func.min(VERDICTS.c.rollout_id)).where(condition)
        with ledger.reader() as connection:
            count, example = connection.execute(query).one()
        if count:
            faults.append(Fault(kind, count, str(example)))
    return faults


def _tally(ledger: Ledger, column: sql.Column[Any]) -> dict[str, int]:
    query = sql.select(column, sql.func.count().label("num")).group_by(column)
    with ledger.reader() as connection:
        counts = [(BASELINE if key is None else str(key), num) for key, num in connection.execute(query)]
    return dict(sorted(counts, key=lambda pair: (-pair[1], pair[0])))


def _in_flight(ledger: Ledger, place: Path | str) -> InFlight | None:
    if (note := ledger.notes().get(IN_FLIGHT)) is None:
        return None
    with ledger.expects_sound_rows():
        mark = json.loads(note.value)
        if not (isinstance(mark, dict) and isinstance(mark.get("rollout_ids"), list)):
            raise ValueError(f"the note '{IN_FLIGHT}' is {note.value!r:.40}")
    num_left = len(mark["rollout_ids"]) - len(ledger.lengths(map(str, mark["rollout_ids"])))
    is_running = "://" not in str(place) and is_taken(Path(f"{place}{LOCK_SUFFIX}"))
    return InFlight(str(mark.get("phase")), num_left, is_running)
