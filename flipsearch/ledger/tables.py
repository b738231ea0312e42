"""The tables of a ledger, and how a record becomes a row and comes back."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from flipsearch.records import Label, Reading, Rollout, Sampling, Verdict

FORMAT = 2
"""Version of the tables; a ledger of another version is refused, not guessed at."""
TOKEN_BYTES = 4
"""Token ids are kept as little-endian 32-bit integers, the same on every machine."""
DOUBLE_BYTES = 8
"""Log-probabilities are kept as little-endian doubles."""

IN_FLIGHT = "in flight"
"""The note of the rollouts that a backend was asked for and has not all given."""

LABELLED = "labelled answers"
"""The note of a ledger that holds a judge's verdicts on answers that people labelled, and no rollouts."""

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
    sql.Column("opening", sql.LargeBinary, nullable=False),
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
)
READINGS = sql.Table(
    "readings",
    TABLES,
    sql.Column("reading_id", sql.String(16), primary_key=True),
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
    """What happened."""
    time: str
    """When, in UTC, as ISO 8601."""


def read_notes(connection: sql.Connection) -> dict[str, Note]:
    """Return all notes by key, oldest first."""
    query = sql.select(NOTES).order_by(NOTES.c.time, NOTES.c.key)
    return {row.key: Note(row.value, row.time) for row in connection.execute(query)}


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Return the row of a rollout."""
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
        "opening": _pack(rollout.opening),
    }


def rollout_of(row: sql.RowMapping) -> Rollout:
    """Return the rollout of a row; struct.error if its tokens are torn."""
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
        opening=_unpack(row["opening"]),
    )


def reading_row(id: str, reading: Reading) -> dict[str, Any]:
    """Return the row of a reading."""
    log_probs = struct.pack(f"<{len(reading.log_probs)}d", *reading.log_probs)
    return {"reading_id": id, "log_probs": log_probs, "num_agreed": reading.num_agreed}


def reading_of(row: sql.RowMapping) -> Reading:
    """Return the reading of a row."""
    blob = row["log_probs"]
    return Reading(struct.unpack(f"<{len(blob) // DOUBLE_BYTES}d", blob), row["num_agreed"])


def verdict_row(rollout_id: str, judge_id: str, verdict: Verdict) -> dict[str, Any]:
    """Return the row of a verdict; whether it failed has no place there, for what failed is not kept."""
    return {
        "rollout_id": rollout_id,
        "judge_id": judge_id,
        "label": verdict.label.value,
        "p_unsafe": verdict.p_unsafe,
        "p_refusal": verdict.p_refusal,
        "reason": verdict.reason,
        "label_mass": verdict.label_mass,
    }


def verdict_of(row: sql.RowMapping) -> Verdict:
    """Return the verdict of a row; ValueError for a label that is none."""
    return Verdict(Label(row["label"]), row["p_unsafe"], row["p_refusal"], row["reason"], row["label_mass"])


def _pack(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def _unpack(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // TOKEN_BYTES}I", blob)
