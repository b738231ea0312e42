"""Whether a ledger is sound: read only, every row once, and what is wrong counted by kind.

A ledger that cannot be opened at all (no ledger, another format) is a LedgerError; a fault is something in an opened
one that flipsearch would not have written.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from flipsearch.core.locks import is_taken
from flipsearch.core.records import Label
from flipsearch.ledger.store import Ledger
from flipsearch.ledger.tables import IN_FLIGHT, LABELLED, ROLLOUTS, VERDICTS, lock_of, one_line, rollout_of

BASELINE = "baseline"
"""What rollouts without a context are counted under."""
_SCORED = [Label.SAFE.value, Label.UNSAFE.value]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of thing that is wrong."""

    kind: str
    """What, in words."""
    count: int
    """How often."""
    example: str
    """The first one: a rollout id, or what the database said."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Rollouts that a backend was asked for and that did not come back."""

    phase: str
    """What they were for."""
    count: int
    """How many are not in the ledger as finished."""
    is_running: bool
    """A process works at this ledger now; otherwise the last one ended before they came."""


@dataclass(frozen=True, slots=True)
class LedgerCheck:
    """What a ledger holds, and what is wrong with it."""

    place: str
    """The file, or the URL of the database."""
    num_rollouts: int
    """All of them, failed ones too; nothing is counted in a file that is damaged."""
    num_errors: int
    """Failed ones: kept, never served, tried again by the next run."""
    num_verdicts: int
    """Of all judges."""
    num_unjudged: int
    """Finished rollouts on which no judge has given a verdict."""
    by_model: Mapping[str, int]
    """Rollouts by model id."""
    by_context: Mapping[str, int]
    """Rollouts by context id, "baseline" for those without one; most first."""
    by_judge: Mapping[str, int]
    """Verdicts by judge id."""
    in_flight: InFlight | None
    """Work that was begun and not finished."""
    faults: tuple[Fault, ...]
    """What is wrong, a fault a kind; () for a sound ledger."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"is_sound": self.is_sound, **asdict(self)}


def check_ledger(place: Path | str) -> LedgerCheck:
    """Read a whole ledger and return what it holds and what is wrong with it; nothing is written.

    Raises LedgerError, in one line, for a place that holds no ledger of this format, or that cannot be read on.
    """
    with Ledger(place, read_only=True) as ledger:
        if damage := _damage(ledger):  # what cannot be trusted is not counted
            return LedgerCheck(str(place), 0, 0, 0, 0, {}, {}, {}, None, tuple(damage))
        by_model, by_judge = _tally(ledger, ROLLOUTS.c.model_id), _tally(ledger, VERDICTS.c.judge_id)
        failed = ROLLOUTS.c.finish_reason == "error"
        judged = sql.exists().where(VERDICTS.c.rollout_id == ROLLOUTS.c.rollout_id)
        return LedgerCheck(
            place=str(place),
            num_rollouts=sum(by_model.values()),
            num_errors=_count(ledger, sql.select(ROLLOUTS.c.rollout_id).where(failed)),
            num_verdicts=sum(by_judge.values()),
            num_unjudged=_count(ledger, sql.select(ROLLOUTS.c.rollout_id).where(~failed, ~judged)),
            by_model=by_model,
            by_context=_tally(ledger, ROLLOUTS.c.context_id),
            by_judge=by_judge,
            in_flight=_in_flight(ledger, place),
            faults=tuple(_wrong_rollouts(ledger) + _wrong_verdicts(ledger)),
        )


def _damage(ledger: Ledger) -> list[Fault]:
    """What SQLite finds wrong with its own file; other databases look after themselves."""
    if ledger.dialect != "sqlite":
        return []
    with ledger.reading() as connection:
        try:
            said = list(connection.exec_driver_sql("PRAGMA integrity_check").scalars())
        except SQLAlchemyError as error:
            said = [one_line(getattr(error, "orig", None) or error)]
    lines = [line for text in said for line in text.splitlines() if line != "ok"]
    return [Fault("the file is damaged", len(lines), lines[-1])] if lines else []


def _wrong_rollouts(ledger: Ledger) -> list[Fault]:
    counts, first = Counter[str](), dict[str, str]()
    for page in ledger.pages():
        for row in page:
            for kind in _wrong(row):
                counts[kind] += 1
                first.setdefault(kind, row["rollout_id"])
    return [Fault(kind, count, first[kind]) for kind, count in counts.items()]


def _wrong(row: sql.RowMapping) -> Iterator[str]:
    if row["finish_reason"] not in ("stop", "length", "error"):
        yield "rollouts whose finish reason is none"
    try:
        rollout = rollout_of(row)
    except struct.error:
        yield "rollouts whose tokens cannot be unpacked"
        return
    if rollout.rollout_id != row["rollout_id"]:
        yield "rollouts whose id is not the hash of their fields"


def _wrong_verdicts(ledger: Ledger) -> list[Fault]:
    label, p_unsafe = VERDICTS.c.label, VERDICTS.c.p_unsafe
    has_rollout = sql.exists().where(ROLLOUTS.c.rollout_id == VERDICTS.c.rollout_id)
    has_failed = has_rollout.where(ROLLOUTS.c.finish_reason == "error")
    queries = {
        "verdicts without a rollout": ~has_rollout if LABELLED not in ledger.notes() else sql.false(),
        "verdicts with an unknown label": label.not_in([one.value for one in Label]),
        "verdicts UNSCORED with a p_unsafe": (label == Label.UNSCORED.value) & p_unsafe.is_not(None),
        "verdicts scored without a p_unsafe": label.in_(_SCORED) & p_unsafe.is_(None),
        "verdicts with a p_unsafe outside 0 to 1": ~p_unsafe.between(0, 1),
        "verdicts that score a failed rollout": has_failed & (label != Label.UNSCORED.value),
    }
    faults = []
    for kind, condition in queries.items():
        query = sql.select(VERDICTS.c.rollout_id).where(condition).order_by(VERDICTS.c.rollout_id)
        with ledger.reading() as connection:
            example = connection.execute(query.limit(1)).scalar()
        if example is not None:
            faults.append(Fault(kind, _count(ledger, query), example))
    return faults


def _count(ledger: Ledger, query: sql.Select[Any]) -> int:
    with ledger.reading() as connection:
        return connection.execute(sql.select(sql.func.count()).select_from(query.subquery())).scalar_one()


def _tally(ledger: Ledger, column: sql.Column[Any]) -> dict[str, int]:
    """Rows by the value of a column, most first."""
    query = sql.select(column, sql.func.count().label("num")).group_by(column)
    with ledger.reading() as connection:
        found = [(BASELINE if key is None else key, num) for key, num in connection.execute(query)]
    return dict(sorted(found, key=lambda pair: (-pair[1], pair[0])))


def _in_flight(ledger: Ledger, place: Path | str) -> InFlight | None:
    if (note := ledger.notes().get(IN_FLIGHT)) is None:
        return None
    mark = json.loads(note.value)
    num_left = len(mark["rollout_ids"]) - len(ledger.lengths(mark["rollout_ids"]))
    is_running = "://" not in str(place) and is_taken(lock_of(Path(place)))
    return InFlight(mark["phase"], num_left, is_running)
