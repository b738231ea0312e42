"""Every rollout and verdict by content hash, in SQL; what is in the ledger is never generated again.

SQLite by default, any SQLAlchemy URL otherwise. SQLite runs in write-ahead mode with synchronous = NORMAL: a commit
does not wait for the disk, a kill at any moment loses only what was not yet committed, and a power cut can cost the
last commits but never damages the file. One process writes to a SQLite ledger at a time, which a lock beside it
ensures; the operating system releases the lock however the process ends.

A rollout with finish_reason "error" is kept as data but never served as a result: the next run tries it again. A
verdict is kept as the judge gave it, UNSCORED ones too; a judge with another identity judges everything anew.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from flipsearch.core.errors import LedgerError, one_line
from flipsearch.core.files import is_held, take_lock
from flipsearch.core.measurements import EndingCounts
from flipsearch.core.records import PrefixScore, Rollout, Verdict
from flipsearch.ledger.tables import (
    FORMAT,
    FORMATS,
    IN_FLIGHT,
    NOTES,
    PREFIX_SCORES,
    ROLLOUTS,
    TABLES,
    TOKEN_BYTES,
    VERDICTS,
    Note,
    check_kinds,
    make_engine,
    prefix_score_of,
    prefix_score_row,
    rollout_of,
    rollout_row,
    verdict_of,
    verdict_row,
)

CHUNK = 500
"""Ids per query: well under every database's limit of bound values."""
LOCK_SUFFIX = ".lock"
"""Ends the name of the file beside a SQLite ledger that the process which writes to it holds locked."""
_FINISHED = ROLLOUTS.c.finish_reason != "error"


class Ledger:
    """Rollouts, verdicts and notes in one database.

    `place` is the path of a SQLite file, created with its folder if absent, or an SQLAlchemy URL. `read_only` takes no
    lock and writes nothing, so that a report can be made while a study runs.
    Raises LedgerError, in one line: a folder or disk that cannot be written, not a ledger, another format, in use.
    """

    def __init__(self, place: str | Path, *, read_only: bool = False) -> None:
        self.place = str(place)
        path = None if "://" in self.place else Path(place)
        self._lock: sqlite3.Connection | None = None
        if path is not None and not read_only:
            with self._guard("created"):
                path.parent.mkdir(parents=True, exist_ok=True)
            with self._guard("locked"):
                self._lock = take_lock(path.with_name(path.name + LOCK_SUFFIX))
        try:
            with self._guard("opened"):
                self._engine = make_engine(path.absolute() if path else self.place, read_only)
                self.dialect = self._engine.dialect.name  # sqlite, postgresql, …
                self._check_format(read_only)
        except BaseException:
            self.close()
            raise

    def rollouts(self, ids: Iterable[str], *, errors: bool = False) -> dict[str, Rollout]:
        """Return id -> rollout for the finished rollouts among `ids`; failed ones too if `errors`."""
        query = sql.select(ROLLOUTS) if errors else sql.select(ROLLOUTS).where(_FINISHED)
        rows = self._rows(query, ROLLOUTS.c.rollout_id, ids)
        with self.expects_sound_rows():
            return {row["rollout_id"]: rollout_of(row) for row in rows}

    def lengths(self, ids: Iterable[str]) -> dict[str, int]:
        """Return id -> generated tokens, prefill excluded, for the finished rollouts among `ids`."""
        num_bytes = sql.func.length(ROLLOUTS.c.completion_ids) - sql.func.length(ROLLOUTS.c.prefill)
        query = sql.select(ROLLOUTS.c.rollout_id, num_bytes.label("num_bytes")).where(_FINISHED)
        rows = self._rows(query, ROLLOUTS.c.rollout_id, ids)
        with self.expects_sound_rows():
            return {row["rollout_id"]: max(0, row["num_bytes"]) // TOKEN_BYTES for row in rows}

    def endings(self, ids: Iterable[str]) -> dict[str, tuple[EndingCounts, int, bool]]:
        """Return id -> how the answer ended, the tokens of its thought, and whether it recites its context.

        Only of the finished rollouts among `ids`.
        """
        names = ("rollout_id", "finish_reason", "num_thought_tokens", "has_thought", "forced_close", "leaks", "recites")
        query = sql.select(*(ROLLOUTS.c[name] for name in names)).where(_FINISHED)
        return {
            row["rollout_id"]: (
                EndingCounts(
                    1, row["finish_reason"] == "length", row["has_thought"], row["forced_close"], row["leaks"]
                ),
                row["num_thought_tokens"],
                row["recites"],
            )
            for row in self._rows(query, ROLLOUTS.c.rollout_id, ids)
        }

    def save_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Write rollouts in one transaction, replacing those that exist."""
        self._replace(ROLLOUTS, [rollout_row(rollout) for rollout in rollouts])

    def prefix_scores(self, ids: Iterable[str]) -> dict[str, PrefixScore]:
        """Return id -> prefix score for those among `ids`."""
        rows = self._rows(sql.select(PREFIX_SCORES), PREFIX_SCORES.c.prefix_score_id, ids)
        with self.expects_sound_rows():
            return {row["prefix_score_id"]: prefix_score_of(row) for row in rows}

    def save_prefix_scores(self, prefix_scores: Iterable[tuple[str, PrefixScore]]) -> None:
        """Write (id, prefix score) pairs in one transaction, replacing those that exist."""
        rows = [prefix_score_row(id, score) for id, score in prefix_scores]
        self._replace(PREFIX_SCORES, rows)

    def verdicts(self, judge_id: str, ids: Iterable[str]) -> dict[str, Verdict]:
        """Return rollout id -> verdict of one judge on the rollouts `ids`."""
        rows = self._rows(sql.select(VERDICTS).where(VERDICTS.c.judge_id == judge_id), VERDICTS.c.rollout_id, ids)
        with self.expects_sound_rows():
            return {row["rollout_id"]: verdict_of(row) for row in rows}

    def verdicts_by_judge(self, ids: Iterable[str]) -> dict[str, dict[str, Verdict]]:
        """Return rollout id -> judge id -> verdict for every judge on the rollouts `ids`."""
        verdicts: dict[str, dict[str, Verdict]] = {}
        with self.expects_sound_rows():
            for row in self._rows(sql.select(VERDICTS).order_by(VERDICTS.c.judge_id), VERDICTS.c.rollout_id, ids):
                verdicts.setdefault(row["rollout_id"], {})[row["judge_id"]] = verdict_of(row)
        return verdicts

    def save_verdicts(self, judge_id: str, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        """Write (rollout id, verdict) pairs of one judge in one transaction, replacing those that exist."""
        rows = [verdict_row(id, judge_id, verdict) for id, verdict in verdicts]
        self._replace(VERDICTS, rows)

    def note(self, key: str, value: str) -> Note:
        """Record that something happened, with the time; return the note of a key that exists, unchanged."""
        note = Note(value, _now())
        with self._writing() as connection:
            known = connection.execute(sql.select(NOTES).where(NOTES.c.key == key)).one_or_none()
            if known is not None:
                return Note(known.value, known.time)
            connection.execute(sql.insert(NOTES), {"key": key, "value": note.value, "time": note.time})
        return note

    def notes(self) -> dict[str, Note]:
        """Return all notes by key, oldest first."""
        query = sql.select(NOTES).order_by(NOTES.c.time, NOTES.c.key)
        with self.reader() as connection:
            rows = list(connection.execute(query).mappings())
        with self.expects_sound_rows():
            for row in rows:
                check_kinds(NOTES, row)
        return {row["key"]: Note(row["value"], row["time"]) for row in rows}

    @contextmanager
    def in_flight(self, phase: str, ids: Iterable[str]) -> Iterator[None]:
        """Mark the rollouts `ids` as requested until the block succeeds; only people read what a kill leaves."""
        value = json.dumps({"phase": phase, "rollout_ids": list(ids)})
        self._replace(NOTES, [{"key": IN_FLIGHT, "value": value, "time": _now()}])
        yield
        with self._writing() as connection:
            connection.execute(sql.delete(NOTES).where(NOTES.c.key == IN_FLIGHT))

    def pages(self) -> Iterator[list[sql.RowMapping]]:
        """Yield the raw rows of all rollouts in the order of their ids, CHUNK rows per page."""
        id, last = ROLLOUTS.c.rollout_id, ""
        while True:
            with self.reader() as connection:
                query = sql.select(ROLLOUTS).where(id > last).order_by(id).limit(CHUNK)
                page = list(connection.execute(query).mappings())
            if not page:
                return
            yield page
            last = page[-1]["rollout_id"]

    def rows(self, table: sql.Table) -> Iterator[sql.RowMapping]:
        """Yield all raw rows of a table, few at a time."""
        with self.reader() as connection:
            query = sql.select(table).execution_options(yield_per=CHUNK)
            yield from connection.execute(query).mappings()

    def judge_ids(self) -> list[str]:
        """Return the judges that gave a verdict, sorted."""
        with self.reader() as connection:
            return sorted(connection.execute(sql.select(VERDICTS.c.judge_id).distinct()).scalars())

    def mean_length(self) -> float | None:
        """Return the mean completion tokens of the finished and judged rollouts; None if their tokens are not known.

        Rollouts that were never judged answer no prompt of the study: a model wrote contexts there.
        """
        num_bytes = sql.func.length(ROLLOUTS.c.completion_ids)
        is_judged = sql.exists().where(VERDICTS.c.rollout_id == ROLLOUTS.c.rollout_id)
        query = sql.select(sql.func.avg(num_bytes)).where(_FINISHED, num_bytes > 0, is_judged)
        with self.reader() as connection:
            mean = connection.execute(query).scalar_one()
        return None if mean is None else float(mean) / TOKEN_BYTES

    def num_filtered(self, ids: Iterable[str]) -> int:
        """Return how many of the rollouts `ids` were withheld by an endpoint."""
        query = sql.select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.finish_reason == "filtered")
        return len(self._rows(query, ROLLOUTS.c.rollout_id, ids))

    def counts(self) -> dict[str, int]:
        """Return the numbers of "rollouts", failed ones among them ("errors") and "verdicts"."""
        queries = {
            "rollouts": sql.select(sql.func.count()).select_from(ROLLOUTS),
            "errors": sql.select(sql.func.count()).select_from(ROLLOUTS).where(~_FINISHED),
            "verdicts": sql.select(sql.func.count()).select_from(VERDICTS),
        }
        with self.reader() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

    def close(self) -> None:
        """Close the database and release the lock; closing twice is fine."""
        if hasattr(self, "_engine"):
            self._engine.dispose()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reader(self) -> Iterator[sql.Connection]:
        """Yield a connection for reading; database errors in the block become LedgerError."""
        with self._guard("read"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def expects_sound_rows(self) -> Iterator[None]:
        """Turn what a row of wrong kinds raises when it becomes a record into a LedgerError."""
        try:
            yield
        except (TypeError, ValueError) as error:
            todo = "flipsearch ledger check says more."
            raise LedgerError(f"{self.place} is not sound: {one_line(error)}; {todo}") from error

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        with self._guard("written"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _guard(self, verb: str) -> Iterator[None]:
        """Turn the errors of SQLAlchemy, its drivers and the lock into a LedgerError: "cannot be `verb`"."""
        try:
            yield
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise LedgerError(f"'{self.place}' is no database URL that can be used: {one_line(error)}.") from error
        except (SQLAlchemyError, sqlite3.Error, OSError, OverflowError, UnicodeError) as error:
            if isinstance(error, sqlite3.Error) and is_held(error):
                todo = "wait until it ends, or choose another reports folder."
                raise LedgerError(f"{self.place} is in use by another flipsearch; {todo}") from error
            why = one_line(error.orig if isinstance(error, DBAPIError) and error.orig else error).rstrip(".")
            todo = "Choose a folder that exists on this machine and can be written."
            if any(sign in why for sign in ("full", "No space", "disk I/O")):
                todo = "Free some space and run the same command again: what was saved before is intact."
            elif any(sign in why for sign in ("not a database", "malformed", "no such", "decode")):
                todo = "It is not a flipsearch ledger, or it is damaged: name another file."
            raise LedgerError(f"{self.place}: the ledger cannot be {verb}: {why}. {todo}") from error

    def _check_format(self, read_only: bool) -> None:
        """Refuse a database that is no ledger of this format; create the tables in an empty one."""
        with self._engine.connect() as connection:
            names = set(sql.inspect(connection).get_table_names())
            if FORMATS.name in names:
                version = connection.execute(sql.select(FORMATS.c.version)).scalar_one_or_none()
                if version != FORMAT:
                    raise LedgerError(
                        f"{self.place}: ledger format {version}, expected {FORMAT}; "
                        "use the flipsearch that wrote it, or choose another reports folder."
                    )
            elif names or read_only:
                raise LedgerError(f"{self.place} is not a flipsearch ledger; name another file.")
        if not names:
            with self._engine.begin() as connection:
                if self.dialect == "sqlite":  # its driver would commit after each table: a full disk would leave some
                    connection.exec_driver_sql("BEGIN")
                TABLES.create_all(connection)
                connection.execute(sql.insert(FORMATS), {"version": FORMAT})

    def _replace(self, table: sql.Table, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if self.dialect == "sqlite":
            with self._writing() as connection:
                connection.execute(sql.insert(table).prefix_with("OR REPLACE"), rows)
            return
        # Delete and insert in one transaction: the one form of upsert that every database understands.
        key = list(table.primary_key.columns)
        match = sql.and_(*(column == sql.bindparam(f"key_{column.name}") for column in key))
        with self._writing() as connection:
            keys = [{f"key_{column.name}": row[column.name] for column in key} for row in rows]
            connection.execute(sql.delete(table).where(match), keys)
            connection.execute(sql.insert(table), rows)

    def _rows(self, query: sql.Select[Any], column: sql.Column[Any], ids: Iterable[str]) -> list[sql.RowMapping]:
        """Return the rows of a query whose `column` holds one of `ids`, CHUNK ids per query."""
        # A list, not a generator: one that an interrupt leaves open would be closed after its connection.
        distinct, rows = list(dict.fromkeys(ids)), list[sql.RowMapping]()
        with self.reader() as connection:
            for start in range(0, len(distinct), CHUNK):
                rows += connection.execute(query.where(column.in_(distinct[start : start + CHUNK]))).mappings()
        return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def open_ledger(path: Path, *, owns_folder: bool = False) -> Iterator[Ledger]:
    """Open a ledger for a block; if that fails with no rollout and no verdict in a new one, remove it.

    New folders go too where they are empty; with `owns_folder` the ledger's own goes with all that is in it. If the
    ledger cannot be opened, another process works there, and only empty folders are removed.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    try:
        with Ledger(path) as ledger:
            try:
                yield ledger
            except BaseException:
                is_unused = path in missing and not any(ledger.counts().values())
                ledger.close()
                for file in path.parent.glob(f"{path.name}*") if is_unused else ():
                    file.unlink()
                if is_unused and owns_folder and path.parent in missing:
                    shutil.rmtree(path.parent, ignore_errors=True)
                raise
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # what is not an empty folder stays
                folder.rmdir()
        raise
