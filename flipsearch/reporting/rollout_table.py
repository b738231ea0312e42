"""A ledger's rollouts as a table: JSON lines, CSV or parquet, one row per rollout with its verdicts.

One page of rows is in memory at a time. Completions are hostile text: JSON lines are plain ASCII, so that no terminal
obeys them, and a CSV cell that a spreadsheet would run gets a leading apostrophe.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sql

from flipsearch.core.errors import ConfigError
from flipsearch.core.files import atomic_write, csv_cell
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import ROLLOUTS, VERDICTS, rollout_of
from flipsearch.reporting.study_file import STUDY_FILE, read_study_file

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
TEXT_FIELDS = dict.fromkeys(
    ("prompt", "prompt_kind", "prompt_category", "prompt_split", "prompt_source", "context", "context_placement"),
    pa.string(),
)
"""What the study of a ledger knows of a rollout's prompt and context; null where it knows neither."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and where; a stream has no path."""

    path: Path | None
    num_rollouts: int
    judges: tuple[str, ...]
    """Identities of the judges whose verdicts are in the rows."""
    has_texts: bool = False
    """The rows hold the texts of prompts and contexts: there is a finished study beside the ledger."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        place = str(self.path) if self.path else None
        judges = list(self.judges)
        return {"path": place, "rows": self.num_rollouts, "judges": judges, "has_texts": self.has_texts}


def check_export(path: Path) -> None:
    """Raise ConfigError for a file whose ending names no format."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--to is '{path}', expected a file that ends in {', '.join(ENDINGS)}.")


def export_file(ledger: Ledger, path: Path, study: Study | None = None) -> Export:
    """Write all rollouts, with the texts that their study knows, to a .jsonl, .csv or .parquet file; or nothing.

    Raises ConfigError for another ending, StudyError for a place that cannot be written.
    """
    check_export(path)
    judges, pages = ledger.judge_ids(), _pages(ledger, study)
    with atomic_write(path) as partial:
        if path.suffix == ".parquet":
            num = _write_parquet(pages, judges, partial)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                num = _write_csv(pages, judges, file) if path.suffix == ".csv" else _write_lines(pages, file)
    return Export(path, num, tuple(judges), has_texts=study is not None)


def export_lines(ledger: Ledger, stream: TextIO, study: Study | None = None) -> Export:
    """Write all rollouts, with the texts that their study knows, to a stream as JSON lines."""
    num = _write_lines(_pages(ledger, study), stream)
    return Export(None, num, tuple(ledger.judge_ids()), has_texts=study is not None)


def study_beside(place: Path | str) -> Study | None:
    """Return the finished study beside a ledger's file, or None: a ledger may have none, or none yet."""
    file = Path(place).with_name(STUDY_FILE)
    return read_study_file(file) if "://" not in str(place) and file.is_file() else None


def rollouts_table(ledger: Ledger, study: Study) -> pd.DataFrame:
    """Return the rows of an export, with columns for the verdicts of each judge."""
    judges = ledger.judge_ids()
    return pd.DataFrame(
        [_flat(row, judges) for page in _pages(ledger, study) for row in page], columns=_schema(judges).names
    )


def _pages(ledger: Ledger, study: Study | None) -> Iterator[list[RolloutRow]]:
    """Yield the rows of the ledger page by page; raises LedgerError where it is damaged."""
    candidates = study.benign.candidates if study and study.benign else ()
    trials = (*study.trials, *candidates) if study else ()
    prompts = {
        prompt.prompt_id: (prompt.text, prompt.kind, prompt.category, prompt.split, prompt.source)
        for prompt in (study.prompts if study else ())
    }
    contexts = {trial.context.context_id: (trial.context.text, trial.context.placement) for trial in trials}
    for page in ledger.pages():
        with ledger.expects_sound_rows():
            rollouts = [rollout_of(row) for row in page]
        verdicts = ledger.verdicts_by_judge(row["rollout_id"] for row in page)
        rows = []
        for rollout in rollouts:  # not by asdict, which copies every token id
            row = {n: getattr(rollout if hasattr(rollout, n) else rollout.sampling, n) for n in ROLLOUT_FIELDS}
            texts = (
                *prompts.get(rollout.prompt_id, (None,) * 5),
                *contexts.get(rollout.context_id or "", (None, None)),
            )
            row |= zip(TEXT_FIELDS, texts, strict=True)
            by_judge = verdicts.get(rollout.rollout_id, {}).items()
            row["verdicts"] = {judge: {name: getattr(v, name) for name in VERDICT_FIELDS} for judge, v in by_judge}
            rows.append(row)
        yield rows


def _schema(judges: Sequence[str]) -> Any:
    """Return the columns of a flat table: those of a rollout, then "label (judge)", "p_unsafe (judge)", ..."""
    verdicts = {f"{field} ({judge})": kind for judge in judges for field, kind in VERDICT_FIELDS.items()}
    return pa.schema(list((ROLLOUT_FIELDS | TEXT_FIELDS | verdicts).items()))


def _flat(row: RolloutRow, judges: Sequence[str]) -> RolloutRow:
    """Return a row with the columns of `_schema`."""
    cells = {name: row[name] for name in (*ROLLOUT_FIELDS, *TEXT_FIELDS)}
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
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(map(csv_cell, _schema(judges).names))
    for page in pages:
        for row in page:
            values = (" ".join(map(str, v)) if isinstance(v, list | tuple) else v for v in _flat(row, judges).values())
            writer.writerow(map(csv_cell, values))
        num += len(page)
    return num


def _write_parquet(pages: Pages, judges: Sequence[str], path: Path) -> int:
    num, schema = 0, _schema(judges)
    with pq.ParquetWriter(path, schema) as writer:
        for page in pages:
            writer.write_table(pa.Table.from_pylist([_flat(row, judges) for row in page], schema))
            num += len(page)
    return num
