"""The ledger: every rollout and verdict by content hash, in SQL; what is in it is never generated again.

SQLite by default, any SQLAlchemy URL otherwise. SQLite runs in write-ahead mode with synchronous = NORMAL: a commit
costs no wait for the disk, a kill at any moment loses only what was not yet committed, and a power cut can cost the
last commits but never tears the file. One process writes to a SQLite ledger at a time, which a lock beside it
ensures; the operating system frees the lock however the process ends.

A rollout with finish_reason "error" is kept as data but never served as a result: the next run tries it again. A
verdict is kept as the judge gave it, UNSCORED ones too; a judge with another identity judges everything anew.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from flipsearch.core.errors import LedgerError
from flipsearch.core.records import PrefixScore, Rollout, Verdict
from flipsearch.ledger.tables import (
    FORMAT,
    FORMATS,
    IN_FLIGHT,
    NOTES,
    READINGS,
    ROLLOUTS,
    TABLES,
    TOKEN_BYTES,
    VERDICTS,
    Note,
    lock_file,
    make_engine,
    one_line,
    prefix_score_of,
    prefix_score_row,
    read_notes,
    rollout_of,
    rollout_row,
    verdict_of,
    verdict_row,
    what_to_do,
)

CHUNK = 500
"""Ids a query: well under every database's limit of bound values."""


class Ledger:
    """Rollouts, verdicts and notes in one database.

    `place` is the path of a SQLite file, made with its folder if absent, or an SQLAlchemy URL. `read_only` takes no
    lock and writes nothing, so that a report can be drawn while a study runs.
    Raises LedgerError, in one line: folder or disk that cannot be written, not a ledger, another format, in use.
    """

    def __init__(self, place: str | Path, *, read_only: bool = False) -> None:
        self.place = str(place)
        path = None if "://" in self.place else Path(place)
        self._lock: sqlite3.Connection | None = None
        if path is not None and not read_only:
            self._make_folder(path)
            self._lock = lock_file(path)
        try:
            with self._guard("opened"):
                self._engine = make_engine(path.resolve() if path else self.place, read_only)
                self._check_format(read_only)
        except BaseException:
            self.close()
            raise

    def rollouts(self, ids: Iterable[str], *, errors: bool = False) -> dict[str, Rollout]:
        """Return the finished rollouts among `ids` by id; failed ones too if `errors`."""
        query = sql.select(ROLLOUTS).where(ROLLOUTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True)))
        if not errors:
            query = query.where(ROLLOUTS.c.finish_reason != "error")
        return {row["rollout_id"]: rollout_of(row) for row in self._rows(query, ids)}

    def lengths(self, ids: Iterable[str]) -> dict[str, int]:
        """Return, for the finished rollouts among `ids`, the tokens that the model wrote by id, openings left out."""
        num_bytes = sql.func.length(ROLLOUTS.c.completion_ids) - sql.func.length(ROLLOUTS.c.prefill)
        columns = ROLLOUTS.c.rollout_id, num_bytes.label("num_bytes")
        query = sql.select(*columns).where(
            ROLLOUTS.c.finish_reason != "error", ROLLOUTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True))
        )
        return {row["rollout_id"]: max(0, row["num_bytes"]) // TOKEN_BYTES for row in self._rows(query, ids)}

    def save_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Write rollouts in one transaction; one that is there already is replaced."""
        self._replace(ROLLOUTS, [ROLLOUTS.c.rollout_id], [rollout_row(rollout) for rollout in rollouts])

    def prefix_scores(self, ids: Iterable[str]) -> dict[str, PrefixScore]:
        """Return the readings among `ids` by id."""
        query = sql.select(READINGS).where(READINGS.c.prefix_score_id.in_(sql.bindparam("ids", expanding=True)))
        return {row["prefix_score_id"]: prefix_score_of(row) for row in self._rows(query, ids)}

    def save_prefix_scores(self, prefix_scores: Iterable[tuple[str, PrefixScore]]) -> None:
        """Write (id, reading) pairs in one transaction; one that is there already is replaced."""
        self._replace(
            READINGS, [READINGS.c.prefix_score_id], [prefix_score_row(id, reading) for id, reading in prefix_scores]
        )

    def verdicts(self, judge_id: str, ids: Iterable[str]) -> dict[str, Verdict]:
        """Return a judge's verdicts on the rollouts `ids`, by rollout id."""
        query = sql.select(VERDICTS).where(
            VERDICTS.c.judge_id == judge_id, VERDICTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True))
        )
        return {row["rollout_id"]: verdict_of(row) for row in self._rows(query, ids)}

    def save_verdicts(self, judge_id: str, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        """Write (rollout id, verdict) pairs of one judge in one transaction; one that is there already is replaced."""
        rows = [verdict_row(id, judge_id, verdict) for id, verdict in verdicts]
        self._replace(VERDICTS, [VERDICTS.c.rollout_id, VERDICTS.c.judge_id], rows)

    def note(self, key: str, value: str) -> Note:
        """Write down that something happened, with the time; a key that is there stays as it is and is returned."""
        now = _now(value)
        with self._writing() as connection:
            if (known := read_notes(connection).get(key)) is not None:
                return known
            connection.execute(sql.insert(NOTES), {"key": key, **asdict(now)})
        return now

    def notes(self) -> dict[str, Note]:
        """Return all notes by key, oldest first."""
        with self.reading() as connection:
            return read_notes(connection)

    @contextmanager
    def in_flight(self, phase: str, ids: Iterable[str]) -> Iterator[None]:
        """Mark the rollouts `ids` as asked for until the block ends well; the mark of one that was killed stays.

        Nothing is read from it but by people: a rollout is either in the ledger, or it is made again.
        """
        value = json.dumps({"phase": phase, "rollout_ids": list(ids)})
        self._replace(NOTES, [NOTES.c.key], [{"key": IN_FLIGHT, **asdict(_now(value))}])
        yield
        with self._writing() as connection:
            connection.execute(sql.delete(NOTES).where(NOTES.c.key == IN_FLIGHT))

    def pages(self) -> Iterator[list[sql.RowMapping]]:
        """Yield the rows of all rollouts in the order of their ids, a page at a time, as they stand in the table."""
        id, last = ROLLOUTS.c.rollout_id, ""
        while True:
            with self.reading() as connection:
                query = sql.select(ROLLOUTS).where(id > last).order_by(id).limit(CHUNK)
                page = list(connection.execute(query).mappings())
            if not page:
                return
            yield page
            last = page[-1]["rollout_id"]

    def verdicts_of_all(self, ids: Iterable[str]) -> dict[str, dict[str, Verdict]]:
        """Return the verdicts of every judge on the rollouts `ids`: rollout id -> judge id -> verdict."""
        wanted = VERDICTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True))
        query = sql.select(VERDICTS).where(wanted).order_by(VERDICTS.c.judge_id)
        found: dict[str, dict[str, Verdict]] = {}
        for row in self._rows(query, ids):
            found.setdefault(row["rollout_id"], {})[row["judge_id"]] = verdict_of(row)
        return found

    def judge_ids(self) -> list[str]:
        """Return the judges that gave a verdict, sorted."""
        with self.reading() as connection:
            return sorted(connection.execute(sql.select(VERDICTS.c.judge_id).distinct()).scalars())

    def mean_length(self) -> float | None:
        """Return the mean completion tokens of the finished rollouts with a verdict, None if none of them tells.

        Those that were cut shorter than others, to be glimpsed, are no whole answers and do not count.
        What was never judged answers no prompt of the study: a model wrote contexts there.
        """
        num_bytes = sql.func.length(ROLLOUTS.c.completion_ids)
        is_judged = sql.exists().where(VERDICTS.c.rollout_id == ROLLOUTS.c.rollout_id)
        finished = ROLLOUTS.c.finish_reason != "error"
        longest = sql.select(sql.func.max(ROLLOUTS.c.max_tokens)).where(is_judged).scalar_subquery()
        whole = ROLLOUTS.c.max_tokens == longest
        query = sql.select(sql.func.avg(num_bytes)).where(finished, num_bytes > 0, is_judged, whole)
        with self.reading() as connection:
            mean = connection.execute(query).scalar_one()
        return None if mean is None else float(mean) / TOKEN_BYTES

    def counts(self) -> dict[str, int]:
        """Return the numbers of rollouts, failed rollouts among them ("errors") and verdicts."""
        failed = ROLLOUTS.c.finish_reason == "error"
        queries = {
            "rollouts": sql.select(sql.func.count()).select_from(ROLLOUTS),
            "errors": sql.select(sql.func.count()).select_from(ROLLOUTS).where(failed),
            "verdicts": sql.select(sql.func.count()).select_from(VERDICTS),
        }
        with self.reading() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

    @property
    def dialect(self) -> str:
        """Name of the database: sqlite, postgresql, …"""
        return self._engine.dialect.name

    def close(self) -> None:
        """Close the database and free the lock; closing twice is fine."""
        if hasattr(self, "_engine"):
            self._engine.dispose()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _make_folder(self, path: Path) -> None:
        with self._guard("created"):
            path.parent.mkdir(parents=True, exist_ok=True)

    def _check_format(self, read_only: bool) -> None:
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
                TABLES.create_all(connection)
                connection.execute(sql.insert(FORMATS), {"version": FORMAT})

    def _replace(self, table: sql.Table, key: list[sql.Column[Any]], rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if self._engine.dialect.name == "sqlite":
            with self._writing() as connection:
                connection.execute(sql.insert(table).prefix_with("OR REPLACE"), rows)
            return
        # Delete and insert in one transaction: the one form of upsert that every database understands.
        match = sql.and_(*(column == sql.bindparam(f"key_{column.name}") for column in key))
        with self._writing() as connection:
            keys = [{f"key_{column.name}": row[column.name] for column in key} for row in rows]
            connection.execute(sql.delete(table).where(match), keys)
            connection.execute(sql.insert(table), rows)

    def _rows(self, query: sql.Select[Any], ids: Iterable[str]) -> list[sql.RowMapping]:
        # Whole, not as a generator: one that an interrupt leaves open would be closed after its connection.
        wanted, found = list(dict.fromkeys(ids)), list[sql.RowMapping]()
        with self.reading() as connection:
            for start in range(0, len(wanted), CHUNK):
                found += connection.execute(query, {"ids": wanted[start : start + CHUNK]}).mappings()
        return found

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """Lend a connection to read with; what goes wrong in the block is a LedgerError."""
        with self._guard("read"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        with self._guard("written"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _guard(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise LedgerError(f"'{self.place}' is no database URL that can be used: {one_line(error)}.") from error
        except (SQLAlchemyError, OSError) as error:
            why = one_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
            raise LedgerError(f"{self.place}: the ledger cannot be {verb}: {why}. {what_to_do(why)}") from error


def _now(value: str) -> Note:
    return Note(value, datetime.now(UTC).isoformat(timespec="seconds"))
