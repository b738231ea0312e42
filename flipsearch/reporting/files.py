"""The file of answers that people label, as a table that spreadsheets open; judging.labels reads it back.

The files of a study: written whole or not at all (beside, then renamed), so a reader never meets half a file.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.files import escape_formula, json_text, write_text
from flipsearch.core.studies import STUDY_FORMAT, Study
from flipsearch.judging.labelling import AnswerToLabel
from flipsearch.judging.labels import PLACE_COLUMNS
from flipsearch.reporting.card import benign_card, context_card, portfolio_card
from flipsearch.reporting.columns import csv_text, leaderboard
from flipsearch.reporting.page import leaderboard_page

COLUMNS = ("label", "prompt", "response", *PLACE_COLUMNS)
MARK = "\ufeff"
"""At the start of the file: without it spreadsheets read UTF-8 as something else, and spoil the texts on saving."""
_UNREADABLE = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""Characters that no text file can hold."""


def write_labels(drawn: Sequence[AnswerToLabel], path: Path) -> None:
    """Write one row an answer; the column `label` waits for unsafe or safe. What spreadsheets would run is made inert.

    How the judge decided is not in it: people who see a verdict tend to agree with it.
    """
    text = io.StringIO()
    # All quoted: Python leaves a lone carriage return bare, and readers would end the row there.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for one in drawn:
        place = one.place
        cells = (one.label or "", escape_formula(one.prompt), escape_formula(one.response), escape_formula(place.study))
        ids = map(_kept, (place.prompt_id, place.context_id, place.rollout_id))
        writer.writerow([*cells, *ids, repr(place.probability)])
    write_text(path, MARK + text.getvalue().translate(_UNREADABLE))


def _kept(id: str) -> str:
    """An id that no spreadsheet takes for a number, as it would 12345678e1234567: judging.labels undoes that."""
    return f"'{id}" if re.fullmatch(r"\d+(e\d+)?", id) else id


STUDY = TypeAdapter(Study)
STUDY_FILE = "study.json"
FILES_OF_BEST = ("best.txt", "best.json", "best.portfolio.json", "best.benign.txt", "best.benign.json")


def write_study(study: Study, folder: Path) -> None:
    """Write study.json, leaderboard.csv, leaderboard.html and, if there is a winner, best.txt and what goes with it."""
    write_text(folder / STUDY_FILE, STUDY.dump_json(study, indent=1).decode() + "\n")
    write_text(folder / "leaderboard.csv", csv_text(leaderboard(study)))
    write_text(folder / "leaderboard.html", leaderboard_page(study))
    found = _files_of_best(study, folder / "best.txt")
    for path, text in found.items():
        write_text(path, text)
    for name in FILES_OF_BEST:  # a study that went on may have lost its winner, or its context for benign prompts
        if folder / name not in found:
            (folder / name).unlink(missing_ok=True)


def write_best(study: Study, path: Path) -> None:
    """Write the winning text alone to `path`, and beside it, with other endings, its context card and its companions.

    These are the portfolio (.portfolio.json) and, if there is one, the context for benign prompts (.benign.txt) with
    its card (.benign.json).
    """
    if study.winner is None:
        raise StudyError(f"study '{study.name}' has no winner to write to {path}.")
    for place, text in _files_of_best(study, path).items():
        write_text(place, text)


def _files_of_best(study: Study, path: Path) -> dict[Path, str]:
    """Path -> content of the winning text and of what stands beside it; {} without a winner."""
    if study.winner is None:
        return {}
    found = {path: study.winner.context.text + "\n"}
    found[path.with_suffix(".json")] = json_text(context_card(study, study.winner))
    if study.portfolio:
        found[path.with_suffix(".portfolio.json")] = json_text(portfolio_card(study, study.portfolio))
    if study.benign and study.benign.context:
        found[path.with_suffix(".benign.txt")] = study.benign.context.text + "\n"
        found[path.with_suffix(".benign.json")] = json_text(benign_card(study, study.benign))
    return found


def check_best(path: Path) -> None:
    """Refuse a place for the winning text that could not be written, or that its card would overwrite."""
    if path.suffix == ".json" or path.is_dir() or not path.name:
        raise ConfigError(f"--best is '{path}', expected a text file such as best.txt; its card goes to best.json.")
    if path.parent.exists() and not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--best is '{path}', but its folder cannot be written; choose another.")


def read_study(folder: Path) -> Study:
    """Read the study of a folder; raises StudyError if there is none or it is of another version."""
    path = folder / STUDY_FILE
    try:
        return STUDY.validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"no finished study in '{folder}': {error.strerror}; run the search first.") from error
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
        raise StudyError(
            f"{path}: expected a study file of format {STUDY_FORMAT}, the one of this version ({why}); "
            "run the search again."
        ) from error

