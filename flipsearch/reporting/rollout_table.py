"""The ledger as a table: a row a rollout with the verdicts on it, as JSON lines, CSV or parquet.

A page of rows is in memory at a time, however large the ledger. Completions are hostile text: JSON lines are plain
ASCII, so that no terminal obeys them, and a CSV cell that a spreadsheet would run gets a leading apostrophe.
"""

import csv
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from flipsearch.core.errors import ConfigError, LedgerError
from flipsearch.core.files import atomic_write, escape_formula
from flipsearch.core.records import Rollout, Verdict
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import rollout_of

Row = dict[str, Any]
Pages = Iterable[list[Row]]
VERDICT_FIELDS = {"label": pa.string(), "p_unsafe": pa.float64(), "p_refusal": pa.float64(), "reason": pa.string(),
                  "label_mass": pa.float64()}  # fmt: skip
ROLLOUT_FIELDS = {
    "rollout_id": pa.string(), "prompt_id": pa.string(), "context_id": pa.string(), "model_id": pa.string(),
    "max_tokens": pa.int64(), "temperature": pa.float64(), "top_p": pa.float64(), "top_k": pa.int64(),
    "seed": pa.int64(), "sample_index": pa.int64(), "completion": pa.string(), "completion_ids": pa.list_(pa.int64()),
    "num_prompt_tokens": pa.int64(), "finish_reason": pa.string(), "opens_thinking": pa.bool_(), "error": pa.string(),
    "prefill": pa.list_(pa.int64()),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and where."""

    path: Path | None
    """The file; None for a stream."""
    num_rollouts: int
    """Rows."""
    judges: tuple[str, ...]
    """Whose verdicts stand beside them."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"path": str(self.path) if self.path else None, "rows": self.num_rollouts, "judges": list(self.judges)}


def check_export(path: Path) -> None:
    """Raise ConfigError for a file whose ending names no format."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"--to is '{path}', expected a file that ends in {', '.join(WRITERS)}.")


def export_file(ledger: Ledger, path: Path) -> Export:
    """Write all rollouts to a .jsonl, .csv or .parquet file: whole or not at all.

    Raises ConfigError for another ending, StudyError for a place that cannot be written.
    """
    check_export(path)
    with atomic_write(path) as partial:
        num = WRITERS[path.suffix](_pages(ledger), ledger.judge_ids(), partial)
    return Export(path, num, tuple(ledger.judge_ids()))


def export_lines(ledger: Ledger, stream: TextIO) -> Export:
    """Write all rollouts to a stream as JSON lines."""
    return Export(None, _write_lines(_pages(ledger), stream), tuple(ledger.judge_ids()))


def _pages(ledger: Ledger) -> Iterator[list[Row]]:
    for page in ledger.pages():
        try:
            rollouts = [rollout_of(row) for row in page]
            verdicts = ledger.verdicts_of_all(row["rollout_id"] for row in page)
        except (struct.error, ValueError) as error:
            raise LedgerError(f"{ledger.place} is not sound: {error}; flipsearch ledger check says more.") from error
        yield [_row(one, verdicts.get(one.rollout_id, {})) for one in rollouts]


def _row(rollout: Rollout, verdicts: dict[str, Verdict]) -> Row:
    # Not asdict, which copies every token id one by one.
    values = {name: getattr(rollout, name) for name in ROLLOUT_FIELDS if hasattr(rollout, name)}
    values |= asdict(rollout.sampling)
    told = {judge: {name: getattr(one, name) for name in VERDICT_FIELDS} for judge, one in verdicts.items()}
    return {name: values[name] for name in ROLLOUT_FIELDS} | {"verdicts": told}


def _flat(row: Row, judges: Sequence[str]) -> Row:
    """A row whose verdicts are columns of their own: "label (judge)", "p_unsafe (judge)", …"""
    cells = {name: value for name, value in row.items() if name != "verdicts"}
    for judge in judges:
        verdict = row["verdicts"].get(judge, {})
        cells |= {f"{field} ({judge})": verdict.get(field) for field in VERDICT_FIELDS}
    return cells


def _write_lines(pages: Pages, stream: TextIO) -> int:
    num = 0
    for page in pages:
        stream.writelines(json.dumps(row) + "\n" for row in page)
        num += len(page)
    return num


def _write_jsonl(pages: Pages, judges: Sequence[str], path: Path) -> int:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        return _write_lines(pages, file)


def _write_csv(pages: Pages, judges: Sequence[str], path: Path) -> int:
    num = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        # All quoted: Python leaves a lone carriage return bare, and readers would end the row there.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(escape_formula(name) for name in _schema(judges).names)
        for page in pages:
            writer.writerows([_cell(value) for value in _flat(row, judges).values()] for row in page)
            num += len(page)
    return num


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return escape_formula(value) if isinstance(value, str) else value


def _write_parquet(pages: Pages, judges: Sequence[str], path: Path) -> int:
    num, schema = 0, _schema(judges)
    with pq.ParquetWriter(path, schema) as writer:
        for page in pages:
            writer.write_table(pa.Table.from_pylist([_flat(row, judges) for row in page], schema))
            num += len(page)
    return num


def _schema(judges: Sequence[str]) -> Any:
    verdicts = {f"{field} ({judge})": kind for judge in judges for field, kind in VERDICT_FIELDS.items()}
    return pa.schema(list((ROLLOUT_FIELDS | verdicts).items()))


WRITERS: dict[str, Callable[[Pages, Sequence[str], Path], int]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""File ending -> what writes it."""
