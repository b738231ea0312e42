"""The tables of a ledger, how a record becomes a row and back, and how the database is opened."""

import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError

from flipsearch.core.records import Label, Rollout, Sampling, Verdict

FORMAT = 4
"""Version of the tables; a ledger of another version is refused."""
TOKEN_BYTES = 4
"""Token ids are kept as little-endian 32-bit integers."""
IN_FLIGHT = "in flight"
"""Key of the note of the rollouts that were requested from a backend and have not all come back."""
LABELLED = "labelled answers"
"""Key of the note of a ledger that holds a judge's verdicts on human-labelled answers, and no rollouts."""

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
    sql.Column("sample_index", sql.Integer, nullable=False),
    sql.Column("completion", sql.Text, nullable=False),
    sql.Column("completion_ids", sql.LargeBinary, nullable=False),
    sql.Column("num_prompt_tokens", sql.Integer, nullable=False),
    sql.Column("finish_reason", sql.String(8), nullable=False),
    sql.Column("opens_thinking", sql.Boolean, nullable=False),
    sql.Column("error", sql.Text, nullable=False),
    sql.Column("prefill", sql.LargeBinary, nullable=False),
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
)
PREFIX_SCORES = sql.Table(
    "prefix_scores",
    TABLES,
    sql.Column("prefix_score_id", sql.String(16), primary_key=True),
    sql.Column("log_probs", sql.LargeBinary, nullable=False),
    sql.Column("num_agreed", sql.Integer, nullable=False),
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
    """Something that happened once in the life of a ledger, e.g. the opening of the confirm split."""

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
    engine = sql.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sql.StaticPool)
    if not read_only:
        sql.event.listen(engine, "connect", set_pragmas)
    return engine


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Return the row of a rollout."""
    return {
        "rollout_id": rollout.rollout_id,
        "prompt_id": rollout.prompt_id,
        "context_id": rollout.context_id,
        "model_id": rollout.model_id,
        **asdict(rollout.sampling),
        "sample_index": rollout.sample_index,
        "completion": rollout.completion,
        "completion_ids": pack("I", rollout.completion_ids),
        "num_prompt_tokens": rollout.num_prompt_tokens,
        "finish_reason": rollout.finish_reason,
        "opens_thinking": rollout.opens_thinking,
        "error": rollout.error,
        "prefill": pack("I", rollout.prefill),
    }


def rollout_of(row: sql.RowMapping) -> Rollout:
    """Return the rollout of a row; struct.error if its tokens cannot be unpacked."""
    return Rollout(
        prompt_id=row["prompt_id"],
        context_id=row["context_id"],
        model_id=row["model_id"],
        sampling=Sampling(row["max_tokens"], row["temperature"], row["top_p"], row["top_k"], row["seed"]),
        sample_index=row["sample_index"],
        completion=row["completion"],
        completion_ids=unpack("I", row["completion_ids"]),
        num_prompt_tokens=row["num_prompt_tokens"],
        finish_reason=row["finish_reason"],
        opens_thinking=row["opens_thinking"],
        error=row["error"],
        prefill=unpack("I", row["prefill"]),
    )


def verdict_row(rollout_id: str, judge_id: str, verdict: Verdict) -> dict[str, Any]:
    """Return the row of a verdict; `failed` has no column, as failed verdicts are not kept."""
    return {
        "rollout_id": rollout_id,
        "judge_id": judge_id,
        "label": verdict.label.value,
        "p_unsafe": verdict.p_unsafe,
        "p_refusal": verdict.p_refusal,
        "reason": verdict.reason,
        "label_mass": verdict.label_mass,
        "kind": verdict.kind,
    }


def verdict_of(row: sql.RowMapping) -> Verdict:
    """Return the verdict of a row; ValueError for an unknown label."""
    names = ("p_unsafe", "p_refusal", "reason", "label_mass", "kind")
    return Verdict(Label(row["label"]), **{name: row[name] for name in names})


def pack(code: str, numbers: Sequence[float]) -> bytes:
    """Return token ids (code "I") or log-probabilities ("d") as little-endian bytes, the same on every machine."""
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def unpack(code: str, blob: bytes) -> tuple[Any, ...]:
    """Invert `pack`; struct.error if the bytes are no whole numbers."""
    return struct.unpack(f"<{len(blob) // struct.calcsize(f'<{code}')}{code}", blob)
