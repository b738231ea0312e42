"""The ledger: every rollout and verdict by content hash, in SQL; what is in it is never generated again.

SQLite by default, any SQLAlchemy URL otherwise. SQLite runs in write-ahead mode with synchronous = NORMAL: a commit
costs no wait for the disk, a kill at any moment loses only what was not yet committed, and a power cut can cost the
last commits but never tears the file. One process writes to a SQLite ledger at a time, which a lock beside it
ensures; the operating system frees the lock however the process ends.

A rollout with finish_reason "error" is kept as data but never served as a result: the next run tries it again. A
verdict is kept as the judge gave it, UNSCORED ones too; a judge with another identity judges everything anew.
"""

import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from flipsearch.errors import LedgerError
from flipsearch.locks import is_held, take_lock
from flipsearch.records import Label, Rollout, Sampling, Verdict

FORMAT = 1
"""Version of the tables; a ledger of another version is refused, not guessed at."""
CHUNK = 500
"""Ids a query: well under every database's limit of bound values."""
TOKEN_BYTES = 4
"""Token ids are kept as little-endian 32-bit integers, the same on every machine."""

_TABLES = sql.MetaData()
_FORMATS = sql.Table("flipsearch_format", _TABLES, sql.Column("version", sql.Integer, nullable=False))
_ROLLOUTS = sql.Table(
    "rollouts",
    _TABLES,
    sql.Column("rollout_id", sql.String(16), primary_key=True),
    sql.Column("prompt_id", sql.String(16), nullable=False),
    sql.Column("context_id", sql.String(16)),
    sql.Column("model_id", sql.Text, nullable=False),
    sql.Column("max_tokens", sql.Integer, nullable=False),
    sql.Column("temperature", sql.Double, nullable=False),
    sql.Column("top_p", sql.Double, nullable=False),
    sql.Column("top_k", sql.Integer, nullable=False),
    sql.Column("seed", sql.BigInteger, nullable=False),
    sql.Column("sample_index", sql.Integer, nullable=False),
    sql.Column("completion", sql.Text, nullable=False),
    sql.Column("completion_ids", sql.LargeBinary, nullable=False),
    sql.Column("num_prompt_tokens", sql.Integer, nullable=False),
    sql.Column("finish_reason", sql.String(8), nullable=False),
    sql.Column("opens_thinking", sql.Boolean, nullable=False),
    sql.Column("error", sql.Text, nullable=False),
)
_VERDICTS = sql.Table(
    "verdicts",
    _TABLES,
    sql.Column("rollout_id", sql.String(16), primary_key=True),
    sql.Column("judge_id", sql.String(64), primary_key=True),
    sql.Column("label", sql.String(8), nullable=False),
    sql.Column("p_unsafe", sql.Double),
    sql.Column("p_refusal", sql.Double),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("label_mass", sql.Double),
)
_NOTES = sql.Table(
    "notes",
    _TABLES,
    sql.Column("key", sql.String(200), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
    sql.Column("time", sql.String(40), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened once in the life of a ledger, e.g. the opening of the confirm split."""

    value: str
    """What happened."""
    time: str
    """When, in UTC, as ISO 8601."""


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
            self._lock = _lock(path)
        try:
            with self._guard("opened"):
                self._engine = _engine(path.resolve() if path else self.place, read_only)
                self._check_format(read_only)
        except BaseException:
            self.close()
            raise

    def rollouts(self, ids: Iterable[str], *, errors: bool = False) -> dict[str, Rollout]:
        """Return the finished rollouts among `ids` by id; failed ones too if `errors`."""
        query = sql.select(_ROLLOUTS).where(_ROLLOUTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True)))
        if not errors:
            query = query.where(_ROLLOUTS.c.finish_reason != "error")
        return {row["rollout_id"]: _rollout(row) for row in self._rows(query, ids)}

    def lengths(self, ids: Iterable[str]) -> dict[str, int]:
        """Return, for the finished rollouts among `ids`, the number of completion tokens by id."""
        columns = _ROLLOUTS.c.rollout_id, sql.func.length(_ROLLOUTS.c.completion_ids).label("num_bytes")
        query = sql.select(*columns).where(
            _ROLLOUTS.c.finish_reason != "error", _ROLLOUTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True))
        )
        return {row["rollout_id"]: row["num_bytes"] // TOKEN_BYTES for row in self._rows(query, ids)}

    def save_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Write rollouts in one transaction; one that is there already is replaced."""
        self._replace(_ROLLOUTS, [_ROLLOUTS.c.rollout_id], [_rollout_row(rollout) for rollout in rollouts])

    def verdicts(self, judge_id: str, ids: Iterable[str]) -> dict[str, Verdict]:
        """Return a judge's verdicts on the rollouts `ids`, by rollout id."""
        query = sql.select(_VERDICTS).where(
            _VERDICTS.c.judge_id == judge_id, _VERDICTS.c.rollout_id.in_(sql.bindparam("ids", expanding=True))
        )
        return {row["rollout_id"]: _verdict(row) for row in self._rows(query, ids)}

    def save_verdicts(self, judge_id: str, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        """Write (rollout id, verdict) pairs of one judge in one transaction; one that is there already is replaced."""
        rows = [{"rollout_id": id, "judge_id": judge_id, **asdict(v), "label": v.label.value} for id, v in verdicts]
        self._replace(_VERDICTS, [_VERDICTS.c.rollout_id, _VERDICTS.c.judge_id], rows)

    def note(self, key: str, value: str) -> Note:
        """Write down that something happened, with the time; a key that is there stays as it is and is returned."""
        now = Note(value, datetime.now(UTC).isoformat(timespec="seconds"))
        with self._writing() as connection:
            if (known := _notes(connection).get(key)) is not None:
                return known
            connection.execute(sql.insert(_NOTES), {"key": key, **asdict(now)})
        return now

    def notes(self) -> dict[str, Note]:
        """Return all notes by key, oldest first."""
        with self._reading() as connection:
            return _notes(connection)

    def counts(self) -> dict[str, int]:
        """Return the numbers of rollouts, failed rollouts among them ("errors") and verdicts."""
        failed = _ROLLOUTS.c.finish_reason == "error"
        queries = {
            "rollouts": sql.select(sql.func.count()).select_from(_ROLLOUTS),
            "errors": sql.select(sql.func.count()).select_from(_ROLLOUTS).where(failed),
            "verdicts": sql.select(sql.func.count()).select_from(_VERDICTS),
        }
        with self._reading() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

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
            if _FORMATS.name in names:
                version = connection.execute(sql.select(_FORMATS.c.version)).scalar_one_or_none()
                if version != FORMAT:
                    raise LedgerError(
                        f"{self.place}: ledger format {version}, expected {FORMAT}; "
                        "use the flipsearch that wrote it, or choose another reports folder."
                    )
            elif names or read_only:
                raise LedgerError(f"{self.place} is not a flipsearch ledger; name another file.")
        if not names:
            with self._engine.begin() as connection:
                _TABLES.create_all(connection)
                connection.execute(sql.insert(_FORMATS), {"version": FORMAT})

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
        with self._reading() as connection:
            for start in range(0, len(wanted), CHUNK):
                found += connection.execute(query, {"ids": wanted[start : start + CHUNK]}).mappings()
        return found

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
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
            raise LedgerError(f"'{self.place}' is no database URL that can be used: {_line(error)}.") from error
        except (SQLAlchemyError, OSError) as error:
            why = _line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
            raise LedgerError(f"{self.place}: the ledger cannot be {verb}: {why}. {_todo(why)}") from error


def _engine(place: str | Path, read_only: bool) -> sql.Engine:
    if isinstance(place, str):
        try:
            return sql.create_engine(place)
        except ValueError as error:  # how SQLAlchemy tells of a port that is no number
            raise ArgumentError(str(error)) from error
    # A URI path has its own escapes, so as_uri and not the path itself; read-only must not create the file.
    uri = f"{place.as_uri()}?mode={'ro' if read_only else 'rwc'}"
    engine = sql.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sql.StaticPool)
    if not read_only:
        sql.event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = NORMAL").close()


def _lock(path: Path) -> sqlite3.Connection:
    try:
        return take_lock(path.with_name(path.name + ".lock"))
    except sqlite3.Error as error:
        if is_held(error):
            raise LedgerError(
                f"{path} is in use by another flipsearch; wait until it ends, or choose another reports folder."
            ) from error
        raise LedgerError(f"{path}: the ledger cannot be locked: {_line(error)}. {_todo(str(error))}") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _todo(why: str) -> str:
    if "full" in why or "No space" in why:
        return "Free some space and run the same command again: what was saved before is intact."
    if "not a database" in why or "malformed" in why:
        return "It is not a flipsearch ledger, or it is damaged: name another file."
    return "Choose a folder that exists on this machine and can be written."


def _notes(connection: sql.Connection) -> dict[str, Note]:
    query = sql.select(_NOTES).order_by(_NOTES.c.time, _NOTES.c.key)
    return {row.key: Note(row.value, row.time) for row in connection.execute(query)}


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    sampling = rollout.sampling
    return {
        "rollout_id": rollout.rollout_id,
        "prompt_id": rollout.prompt_id,
        "context_id": rollout.context_id,
        "model_id": rollout.model_id,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "sample_index": rollout.sample_index,
        "completion": rollout.completion,
        "completion_ids": _pack(rollout.completion_ids),
        "num_prompt_tokens": rollout.num_prompt_tokens,
        "finish_reason": rollout.finish_reason,
        "opens_thinking": rollout.opens_thinking,
        "error": rollout.error,
    }


def _rollout(row: sql.RowMapping) -> Rollout:
    return Rollout(
        prompt_id=row["prompt_id"],
        context_id=row["context_id"],
        model_id=row["model_id"],
        sampling=Sampling(row["max_tokens"], row["temperature"], row["top_p"], row["top_k"], row["seed"]),
        sample_index=row["sample_index"],
        completion=row["completion"],
        completion_ids=_unpack(row["completion_ids"]),
        num_prompt_tokens=row["num_prompt_tokens"],
        finish_reason=row["finish_reason"],
        opens_thinking=row["opens_thinking"],
        error=row["error"],
    )


def _verdict(row: sql.RowMapping) -> Verdict:
    return Verdict(Label(row["label"]), row["p_unsafe"], row["p_refusal"], row["reason"], row["label_mass"])


def _pack(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def _unpack(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // TOKEN_BYTES}I", blob)
