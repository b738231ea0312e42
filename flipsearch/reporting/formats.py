"""Reports and tables as files: a page, a table in a format that other tools read, or a browser's picture of a page.

The format follows from the file's ending unless it is given. Texts are hostile: the browser gets a page without
scripts, as the page's policy says, and no request leaves it; JSON lines are plain ASCII, so that no terminal obeys
them, and a CSV cell that a spreadsheet would run gets a leading apostrophe.

A study as tables for Python: its leaderboard, and what became of each prompt under each context. A ledger's rollouts:
one row per rollout with its verdicts, with one page of rows in memory at a time.
"""

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sql

from flipsearch.core.errors import ConfigError, StudyError, one_line, unknown_name
from flipsearch.core.files import atomic_write, csv_cell, json_text, printable, write_text
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import ROLLOUTS, VERDICTS, rollout_of
from flipsearch.reporting.columns import columns_legend, columns_of, csv_text, kinds_legend, leaderboard, rank_of
from flipsearch.reporting.format import escaped, fenced, markdown_table, names_of
from flipsearch.reporting.study_file import STUDY_FILE, read_study_file
from flipsearch.reporting.verdict import StudyVerdict, verdict

FORMATS = ("html", "csv", "json", "md", "parquet", "png")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
MOST_COLUMNS, MOST_ROWS = 15, 10
"""Of a table in Markdown, which is for issues and chats: wider or longer ones are read nowhere."""
WIDTH = 1280
"""Pixels of a picture from left to right."""
Picture = tuple[str, int]
"""A page, and how much of it is shown, in pixels from its top."""
PICTURE_S = 120
"""A browser that takes longer is ended."""


def report_format(to: Path | None, format: str | None) -> str:
    """Return the format of a report: `format`, or what the ending of `to` says; ConfigError if it cannot be made."""
    if to and (to.is_dir() or not to.absolute().parent.is_dir()):
        raise ConfigError(f"--to is '{to}', expected a file in a folder that is there.")
    chosen = format or (to.suffix.lower().removeprefix(".") if to else "")
    if chosen not in FORMATS and format is not None:
        raise ConfigError(unknown_name("--format", format, FORMATS))
    if chosen not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--to is '{to}', expected a file that ends in {endings}, or --format beside it.")
    if chosen == "png":
        browser()
    return chosen


def browser() -> str:
    """Return the browser that takes pictures; ConfigError if there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise ConfigError("--format png needs Chromium or Chrome on the PATH, and there is none; install it, or take html.")


def write_report(
    path: Path,
    format: str,
    frame: Callable[[], pd.DataFrame],
    page: Callable[[], str],
    picture: Callable[[], Picture],
    summary: Callable[[], str],
) -> None:
    """Write a report in one of FORMATS, whole or not at all; a picture is taken of the page that `picture` returns.

    `summary` returns Markdown that can be pasted: the verdict, and the first rows of the table.
    """
    if format == "html":
        write_text(path, page())
    elif format == "png":
        take_picture(*picture(), path)
    elif format == "parquet":
        with atomic_write(path) as partial:
            frame().to_parquet(partial, index=False)
    elif format == "json":
        write_text(path, json_text({"rows": loads(frame().to_json(orient="records"))}))
    elif format == "csv":
        write_text(path, csv_text(frame()))
    else:
        write_text(path, summary())


def study_summary(study: Study) -> str:
    """Return what a study says and its first rows as Markdown: the columns of the terminal, all placebos."""
    arms, placebos = ([trial for trial in study.trials if trial.role == role] for role in ("arm", "placebo"))
    columns, names = columns_of(study, "terminal")[:MOST_COLUMNS], names_of(study)
    rows = [
        [names[trial.number] if column.name == "context" else column.text(study, trial) for column in columns]
        for trial in [*arms[:MOST_ROWS], *placebos]
    ]
    table = markdown_table([column.terminal or "" for column in columns], rows, 2)
    below = [table, columns_legend(columns), kinds_legend(study)]
    if arms[MOST_ROWS:]:
        below.append(f"{len(arms) - MOST_ROWS:,} more contexts are in leaderboard.csv.")
    if study.best and verdict(study).tone in ("good", "warning"):
        below.append(f"The text of #{rank_of(study, study.best)}:\n\n{fenced(study.best.context.text)}")
    title = f"Study {study.name}, model {study.settings.get('model')}"
    return summary_text(title, verdict(study), "\n\n".join(filter(None, below)))


def summary_text(title: str, conclusion: StudyVerdict, table: str) -> str:
    """Return a verdict as Markdown, with a table below what it rests on, and what to do next."""
    lines = [f"### {escaped(title)}", "", f"**{escaped(conclusion.sentence)}**", ""]
    lines += [f"- {escaped(line)}" for line in conclusion.basis]
    lines += ["", table.strip(), "", *(["Next:", ""] if conclusion.next_steps else [])]
    for step in conclusion.next_steps:
        lines += [f"- {escaped(step.text)}", *(["", f"      {printable(step.command)}", ""] if step.command else [])]
    return "\n".join(lines).rstrip() + "\n"


def take_picture(page: str, height: int, path: Path) -> None:
    """Write what a browser shows of the top of a page, WIDTH pixels wide, as PNG; StudyError if it shows nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(page, encoding="utf-8")
        command = [
            *(browser(), "--headless", "--disable-gpu", "--hide-scrollbars"),
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),  # root has none
            *(f"--window-size={WIDTH},{height}", "--virtual-time-budget=5000", f"--user-data-dir={folder}/profile"),
            *(f"--screenshot={shot}", source.as_uri()),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PICTURE_S)
            picture = shot.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            why = f"{command[0]} takes none ({one_line(error)})"
            raise StudyError(f"no picture at '{path}': {why}; take html instead.") from error
    with atomic_write(path) as partial:
        partial.write_bytes(picture)


class Leaderboard(pd.DataFrame):
    """The columns of the leaderboard that one looks at first; `full` has all of them."""

    @classmethod
    def of(cls, study: Study) -> "Leaderboard":
        """Return the leaderboard of a study, best first, placebos last; `context` are names that tell rows apart."""
        full, names = leaderboard(study), names_of(study)
        splits = dict.fromkeys((study.trials[0].search.split, study.trials[0].final.split))
        last = list(splits)[-1]
        rates = [f"{split}_flip_rate" for split in splits]
        columns = [
            *("rank", "winner", "role", "state", "placement", "num_context_tokens", *rates),
            *(f"{last}_flip_rate_low", f"{last}_flip_rate_high", "net_flip_rate", f"{last}_added_refusals"),
            *("context_id", "text"),
        ]
        short = cls(full[columns])
        short.insert(1, "context", [names[trial.number] for trial in study.trials])
        object.__setattr__(short, "_full", full)  # by its own way pandas would warn of a new column
        return short

    @property
    def full(self) -> pd.DataFrame:
        """Every column, as in leaderboard.csv."""
        frame: pd.DataFrame = self.__dict__["_full"]
        return frame


def flips_table(study: Study) -> pd.DataFrame:
    """Return one row per context and prompt, on the last split that the context saw."""
    prompts, names = {prompt.prompt_id: prompt for prompt in study.prompts}, names_of(study)
    rows = []
    for trial in study.trials:
        for flip in trial.final.flips:
            prompt = prompts.get(flip.prompt_id)
            rows.append(
                {
                    "context": names[trial.number],
                    "context_id": trial.context.context_id,
                    "role": trial.role,
                    "split": trial.final.split,
                    "prompt_id": flip.prompt_id,
                    "kind": flip.kind,
                    "category": prompt.category if prompt else None,
                    "prompt": prompt.text if prompt else None,
                    "before": str(flip.before),
                    "after": str(flip.after),
                    "flipped": flip.flipped,
                    "kind_after": flip.kind_after,
                    "refused_before": flip.refused_before,
                    "refused_after": flip.refused_after,
                }
            )
    return pd.DataFrame(rows)


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
