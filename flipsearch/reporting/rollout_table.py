"""The ledger as a table: one row per rollout with its verdicts, as JSON lines, CSV or parquet.

One page of rows is in memory at a time. Completions are hostile text: JSON lines are plain ASCII, so that no terminal
obeys them, and a CSV cell that a spreadsheet would run gets a leading apostrophe.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sql

from flipsearch.core.errors import ConfigError
from flipsearch.core.files import atomic_write, escape_formula
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import ROLLOUTS, VERDICTS, rollout_of

ENDINGS = (".jsonl", ".csv", ".parquet")
RolloutRow = dict[str, Any]
Pages = Iterable[list[RolloutRow]]
KINDS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.list_(pa.int64())}
"""Kind of a column of the ledger -> kind in parquet; bytes hold tokens."""


def _fields(table: sql.Table, without: set[str]) -> dict[str, Any]:
    columns = (column for column in table.columns if column.name not in without)
    return {column.name: KINDS[column.type.python_type] for column in columns}


ROLLOUT_FIELDS = _fields(ROLLOUTS, without={"has_thought", "leaks", "checksum"})
VERDICT_FIELDS = _fields(VERDICTS, without={"rollout_id", "judge_id", "checksum"})


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and where; a stream has no path."""

    path: Path | None
    num_rollouts: int
    judges: tuple[str, ...]
    """Identities of the judges whose verdicts are in the rows."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"path": str(self.path) if self.path else None, "rows": self.num_rollouts, "judges": list(self.judges)}


def check_export(path: Path) -> None:
    """Raise ConfigError for a file whose ending names no format."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--to is '{path}', expected a file that ends in {', '.join(ENDINGS)}.")


def export_file(ledger: Ledger, path: Path) -> Export:
    """Write all rollouts to a .jsonl, .csv or .parquet file: whole or not at all.

    Raises ConfigError for another ending, StudyError for a place that cannot be written.
    """
    check_export(path)
    judges = ledger.judge_ids()
    with atomic_write(path) as partial:
        if path.suffix == ".parquet":
            num = _write_parquet(_pages(ledger), judges, partial)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                is_csv = path.suffix == ".csv"
                num = _write_csv(_pages(ledger), judges, file) if is_csv else _write_lines(_pages(ledger), file)
    return Export(path, num, tuple(judges))


def export_lines(ledger: Ledger, stream: TextIO) -> Export:
    """Write all rollouts to a stream as JSON lines."""
    return Export(None, _write_lines(_pages(ledger), stream), tuple(ledger.judge_ids()))


def _pages(ledger: Ledger) -> Iterator[list[RolloutRow]]:
    """Yield the rows of the ledger page by page; raises LedgerError where it is damaged."""
    for page in ledger.pages():
        with ledger.expects_sound_rows():
            rollouts = [rollout_of(row) for row in page]
        verdicts = ledger.verdicts_of_all(row["rollout_id"] for row in page)
        rows = []
        for rollout in rollouts:  # not by asdict, which copies every token id
            row = {n: getattr(rollout if hasattr(rollout, n) else rollout.sampling, n) for n in ROLLOUT_FIELDS}
            by_judge = verdicts.get(rollout.rollout_id, {}).items()
            row["verdicts"] = {judge: {name: getattr(v, name) for name in VERDICT_FIELDS} for judge, v in by_judge}
            rows.append(row)
        yield rows


def _schema(judges: Sequence[str]) -> Any:
    """Return the columns of a flat table: those of a rollout, then "label (judge)", "p_unsafe (judge)", ..."""
    verdicts = {f"{field} ({judge})": kind for judge in judges for field, kind in VERDICT_FIELDS.items()}
    return pa.schema(list((ROLLOUT_FIELDS | verdicts).items()))


def _flat(row: RolloutRow, judges: Sequence[str]) -> RolloutRow:
    """Return a row with the columns of `_schema`."""
    cells = {name: row[name] for name in ROLLOUT_FIELDS}
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


def _write_csv(pages: Pages, judges: Sequence[str], stream: TextIO) -> int:
    num = 0
    # All quoted: Python leaves a lone carriage return bare, and readers would end the row there.
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(escape_formula(name) for name in _schema(judges).names)
    for page in pages:
        for row in page:
            values = (" ".join(map(str, v)) if isinstance(v, list | tuple) else v for v in _flat(row, judges).values())
            writer.writerow([escape_formula(value) if isinstance(value, str) else value for value in values])
        num += len(page)
    return num


def _write_parquet(pages: Pages, judges: Sequence[str], path: Path) -> int:
    num, schema = 0, _schema(judges)
    with pq.ParquetWriter(path, schema) as writer:
        for page in pages:
            writer.write_table(pa.Table.from_pylist([_flat(row, judges) for row in page], schema))
            num += len(page)
    return num
