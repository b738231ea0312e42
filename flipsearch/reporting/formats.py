"""A report as one file: a page, a table in a format that other tools read, or a picture that a browser takes of a page.

The format follows from the file's ending unless it is given. Texts are hostile: the browser gets a page without
scripts, as the page's policy says, and no request leaves it.

A study as tables for Python: its leaderboard, and what became of each prompt under each context.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from json import loads
from pathlib import Path

import pandas as pd

from flipsearch.core.display import printable
from flipsearch.core.errors import ConfigError, StudyError, one_line, unknown_name
from flipsearch.core.files import atomic_write, json_text, write_text
from flipsearch.core.studies import Study
from flipsearch.reporting.columns import columns_of, csv_text, kinds_legend, leaderboard, rank_of
from flipsearch.reporting.format import escaped, fenced, markdown_table, names_of
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
    below = [table, kinds_legend(study)]
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
