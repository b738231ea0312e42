"""check_ledger and export_ledger."""

import sys
from pathlib import Path
from typing import TextIO

from flipsearch.ledger import Ledger
from flipsearch.ledger.check import LedgerCheck
from flipsearch.ledger.check import check_ledger as check
from flipsearch.reporting.rollout_table import Export, check_export, export_file, export_lines
from flipsearch.workspace import ledger_place


def check_ledger(study: Path | str, *, reports: Path | None = None) -> LedgerCheck:
    """Read the ledger of a study and return what it holds and what is wrong with it; nothing is written.

    `study` is a study's name or folder, or a ledger's file or database URL.
    """
    return check(ledger_place(study, reports))


def export_ledger(
    study: Path | str, *, to: Path | str | None = None, reports: Path | None = None, stream: TextIO | None = None
) -> Export:
    """Write all rollouts of a study with their verdicts to a .jsonl, .csv or .parquet file, or as lines to `stream`.

    Without either, the lines go to stdout.
    """
    if to is not None:
        check_export(Path(to))
    with Ledger(ledger_place(study, reports), read_only=True) as ledger:
        return export_file(ledger, Path(to)) if to is not None else export_lines(ledger, stream or sys.stdout)
