"""The tables of a ledger, how a record becomes a row and back, and how the database is opened."""

import hashlib
import json
import sqlite3
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError

from flipsearch.core.files import storable
from flipsearch.core.records import ANSWER_KINDS, FINISH_REASONS, Label, PrefixScore, Rollout, Sampling, Verdict

FORMAT = 8
"""Version of the tables; a ledger of another version is refused."""
TOKEN_BYTES = 4
"""Token ids are kept as little-endian 32-bit integers."""
IN_FLIGHT = "in flight"
"""Key of the note of the rollouts that were requested from a backend and have not all come back."""
SAMPLING_FIELDS = tuple(field.name for field in fields(Sampling))
ROLLOUT_FIELDS = tuple(field.name for field in fields(Rollout) if field.name != "sampling")
VERDICT_FIELDS = ("p_unsafe", "p_refusal", "reason", "label_mass", "kind")
"""Columns beside the label that are named as the fields of a record are."""
LABELLED = "labelled answers"
"""Key of the note of a ledger that holds a judge's verdicts on human-labelled answers, and no rollouts."""


class Bytes(sql.LargeBinary):
    """Bytes as the database holds them: SQLAlchemy would turn a number into that many zeros."""

    cache_ok = True

    def result_processor(self, dialect: sql.Dialect, coltype: object) -> Callable[[Any], Any]:
        """Return what makes bytes of a driver's view of them."""
        return lambda value: bytes(value) if isinstance(value, memoryview) else value


TABLES = sql.MetaData()
FORMATS = sql.Table("flipsearch_format", TABLES, sql.Column("version", sql.Integer, nullable=False))
ROLLOUTS = sql.Table(
    "rollouts",
    TABLES,
    sql.Column("rollout_id", sql.String(16), primary_key=True),
    sql.Column("prompt_id", sql.String(16), nullable=False),
    sql.Column("context_id", sql.String(16)),
    sql.Column("model_id", sql.Text, nullable=False),
    sql.Column("max_tokens", sql.Integer, nullable=False),
    sql.Column("temperature", sql.Double, nullable=False),
    sql.Column("top_p", sql.Double, nullable=False),
    sql.Column("top_k", sql.Integer, nullable=False),
    sql.Column("seed", sql.BigInteger, nullable=False),
    sql.Column("think_tokens", sql.Integer, nullable=False),
    sql.Column("repetition_penalty", sql.Double, nullable=False),
    sql.Column("sample_index", sql.Integer, nullable=False),
    sql.Column("completion", sql.Text, nullable=False),
    sql.Column("completion_ids", Bytes, nullable=False),
    sql.Column("num_prompt_tokens", sql.Integer, nullable=False),
    sql.Column("finish_reason", sql.String(8), nullable=False),
    sql.Column("opens_thinking", sql.Boolean, nullable=False),
    sql.Column("error", sql.Text, nullable=False),
    sql.Column("prefill", Bytes, nullable=False),
    sql.Column("skips_thought", sql.Boolean, nullable=False),
    sql.Column("num_thought_tokens", sql.Integer, nullable=False),
    sql.Column("forced_close", sql.Boolean, nullable=False),
    sql.Column("recites", sql.Boolean, nullable=False),
    # Of the completion's text, so that counting them reads no text.
    sql.Column("has_thought", sql.Boolean, nullable=False),
    sql.Column("leaks", sql.Boolean, nullable=False),
    sql.Column("checksum", sql.String(16), nullable=False),
)
VERDICTS = sql.Table(
    "verdicts",
    TABLES,
    sql.Column("rollout_id", sql.String(16), primary_key=True),
    sql.Column("judge_id", sql.String(64), primary_key=True),
    sql.Column("label", sql.String(8), nullable=False),
    sql.Column("p_unsafe", sql.Double),
    sql.Column("p_refusal", sql.Double),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("label_mass", sql.Double),
    sql.Column("kind", sql.String(12)),
    sql.Column("checksum", sql.String(16), nullable=False),
)
PREFIX_SCORES = sql.Table(
    "prefix_scores",
    TABLES,
    sql.Column("prefix_score_id", sql.String(16), primary_key=True),
    sql.Column("log_probs", Bytes, nullable=False),
    sql.Column("num_agreed", sql.Integer, nullable=False),
    sql.Column("checksum", sql.String(16), nullable=False),
)
NOTES = sql.Table(
    "notes",
    TABLES,
    sql.Column("key", sql.String(200), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
    sql.Column("time", sql.String(40), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened once in the life of a ledger, e.g. the unsealing of the confirm split."""

    value: str
    time: str
    """UTC, as ISO 8601."""


def make_engine(place: str | Path, read_only: bool) -> sql.Engine:
    """Return the engine of a SQLite file (a path) or of a database URL (a string)."""
    if isinstance(place, str):
        try:
            return sql.create_engine(place)
        except ValueError as error:  # a port that is not a number
            raise ArgumentError(str(error)) from error

    def set_pragmas(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL").close()
        connection.execute("PRAGMA synchronous = NORMAL").close()

    # A URI path has its own escapes, so as_uri and not the path itself; read-only must not create the file.
    uri = f"{place.as_uri()}?mode={'ro' if read_only else 'rwc'}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True)
        if read_only:
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").close()
            except sqlite3.OperationalError:
                connection.close()
                log = place.with_name(f"{place.name}-wal")
                if log.is_file() and log.stat().st_size:  # without it, the last rollouts would be missing
                    raise
                # Reading too makes files beside a database in write-ahead mode, where the folder can be written.
                return sqlite3.connect(f"{uri}&immutable=1", uri=True)
        return connection

    engine = sql.create_engine("sqlite://", creator=connect, poolclass=sql.StaticPool)
    if not read_only:
        sql.event.listen(engine, "connect", set_pragmas)
    return engine


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Return the row of a rollout."""
    parts = rollout.parts
    row = {name: getattr(rollout.sampling, name) for name in SAMPLING_FIELDS}
    row |= {name: getattr(rollout, name) for name in ("rollout_id", *ROLLOUT_FIELDS)}
    row |= {"completion": storable(rollout.completion), "error": storable(rollout.error)}
    row |= {"completion_ids": pack("I", rollout.completion_ids), "prefill": pack("I", rollout.prefill)}
    row |= {"has_thought": parts.has_thought and rollout.finish_reason != "error", "leaks": parts.leaks}
    return row | {"checksum": checksum(ROLLOUTS, row)}


def rollout_of(row: sql.RowMapping) -> Rollout:
    """Return the rollout of a row; ValueError for an unknown or wrong value, and tokens that cannot be unpacked."""
    check_kinds(ROLLOUTS, row)
    if row["finish_reason"] not in FINISH_REASONS:
        raise ValueError(
            f"rollouts.finish_reason is {row['finish_reason']!r:.40}, expected {', '.join(FINISH_REASONS)}"
        )
    values = {name: row[name] for name in ROLLOUT_FIELDS}
    values |= {name: unpack("I", row[name]) for name in ("completion_ids", "prefill")}
    return Rollout(sampling=Sampling(**{name: row[name] for name in SAMPLING_FIELDS}), **values)


def verdict_row(rollout_id: str, judge_id: str, verdict: Verdict) -> dict[str, Any]:
    """Return the row of a verdict; `failed` has no column, as failed verdicts are not kept."""
    row = {"rollout_id": rollout_id, "judge_id": judge_id, "label": verdict.label.value}
    row |= {name: getattr(verdict, name) for name in VERDICT_FIELDS} | {"reason": storable(verdict.reason)}
    return row | {"checksum": checksum(VERDICTS, row)}


def verdict_of(row: sql.RowMapping) -> Verdict:
    """Return the verdict of a row; ValueError for an unknown or wrong value."""
    check_kinds(VERDICTS, row)
    if row["kind"] is not None and row["kind"] not in ANSWER_KINDS:
        raise ValueError(f"verdicts.kind is {row['kind']!r:.40}, expected {', '.join(ANSWER_KINDS)} or none")
    return Verdict(Label(row["label"]), **{name: row[name] for name in VERDICT_FIELDS})


def prefix_score_row(id: str, score: PrefixScore) -> dict[str, Any]:
    """Return the row of a prefix score."""
    row = {"prefix_score_id": id, "log_probs": pack("d", score.log_probs), "num_agreed": score.num_agreed}
    return row | {"checksum": checksum(PREFIX_SCORES, row)}


def prefix_score_of(row: sql.RowMapping) -> PrefixScore:
    """Return the prefix score of a row; ValueError for a value of the wrong kind."""
    check_kinds(PREFIX_SCORES, row)
    return PrefixScore(unpack("d", row["log_probs"]), row["num_agreed"])


def check_kinds(table: sql.Table, row: sql.RowMapping) -> None:
    """Raise ValueError for a value that is of another kind than its column, as SQLite lets anyone store."""
    for name, kind, is_nullable in _columns(table):
        value = row[name]
        is_right = isinstance(value, kind) or (value is None and is_nullable) or (kind is float and type(value) is int)
        if not is_right:
            raise ValueError(f"{table.name}.{name} is {value!r:.40}, expected {kind.__name__}")


@cache
def _columns(table: sql.Table) -> list[tuple[str, type, bool]]:
    """Return name, type and nullability of a table's columns; SQLAlchemy would work them out anew for every row."""
    return [(column.name, column.type.python_type, bool(column.nullable)) for column in table.columns]


def checksum(table: sql.Table, row: Mapping[str, Any] | sql.RowMapping) -> str:
    """Return 16 hexadecimal digits of a hash of all values of a row, by which one that was edited is found."""
    values = []
    for name, kind, _ in _columns(table):
        if name != "checksum":
            value = row[name]
            is_whole = kind is float and isinstance(value, int)  # a database returns it as a float
            values.append(value.hex() if isinstance(value, bytes) else float(value) if is_whole else value)
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()[:16]


def pack(code: str, numbers: Sequence[float]) -> bytes:
    """Return token ids (code "I") or log-probabilities ("d") as little-endian bytes, the same on every machine."""
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def unpack(code: str, blob: bytes) -> tuple[Any, ...]:
    """Invert `pack`; ValueError if the bytes are no whole numbers."""
    try:
        return struct.unpack(f"<{len(blob) // struct.calcsize(f'<{code}')}{code}", blob)
    except struct.error as error:
        raise ValueError(f"{len(blob)} bytes cannot be unpacked") from error
