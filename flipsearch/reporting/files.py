"""The files of finished studies, trainings and evaluations, and the file of answers for annotators.

Each is written whole or not at all (core/files.py). What is read back is validated: another version or shape is refused
in one line.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from flipsearch.backends.models import TRAINING_FILE
from flipsearch.config import ScoreConfig, SearchConfig, StudyConfig
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.files import escape_formula, json_text, write_text
from flipsearch.core.records import json_value
from flipsearch.core.scorecards import Scorecard
from flipsearch.core.settings import LONGEST_NAME, make_config
from flipsearch.core.studies import Study, StudyKind
from flipsearch.core.trainings import LogLine, TrainingRun, check_format, check_method
from flipsearch.judging.labelling import AnswerToLabel
from flipsearch.judging.labels import PLACE_COLUMNS
from flipsearch.reporting.card import benign_card, context_card, portfolio_card
from flipsearch.reporting.columns import csv_text, leaderboard
from flipsearch.reporting.model_card import model_card
from flipsearch.reporting.page import leaderboard_page
from flipsearch.reporting.training_page import training_page

Record = TypeVar("Record")
STUDY, RUN = TypeAdapter(Study), TypeAdapter(TrainingRun)
STUDY_FILE = "study.json"
LABEL_COLUMNS = ("label", "prompt", "response", *PLACE_COLUMNS)
BYTE_ORDER_MARK = "\ufeff"
"""At the start of the label file: without it spreadsheets misread UTF-8, and spoil the texts on saving."""
_UNREADABLE = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""Characters that no text file can hold."""


def write_study(study: Study, folder: Path) -> None:
    """Write study.json, leaderboard.csv, leaderboard.html and, if there is a winner, best.txt and what goes with it."""
    write_text(folder / STUDY_FILE, STUDY.dump_json(study, indent=1).decode() + "\n")
    write_text(folder / "leaderboard.csv", csv_text(leaderboard(study)))
    write_text(folder / "leaderboard.html", leaderboard_page(study))
    write_best(study, folder / "best.txt")


def write_best(study: Study, path: Path) -> None:
    """Write the winning text alone to `path`, and beside it its context card (.json) and its companions.

    These are the portfolio (.portfolio.json) and, if there is one, the context for benign prompts (.benign.txt,
    .benign.json). What an earlier search left there is removed; without a winner nothing takes its place.
    """
    remove_best(path)
    for place, text in _texts_of_best(study, path).items():
        write_text(place, text)


def remove_best(path: Path) -> None:
    """Remove the winning text that a search wrote to `path`, and all that goes with it; files of others stay."""
    for text, card in ((path, ".json"), (path.with_suffix(".benign.txt"), ".benign.json"), (None, ".portfolio.json")):
        written = path.with_suffix(card)
        content: object = None
        with suppress(OSError, ValueError):
            content = from_json(written.read_bytes())
        if isinstance(content, dict) and "card_version" in content:
            for stale in filter(None, (text, written)):
                with suppress(OSError):
                    stale.unlink()


def is_of_another_study(path: Path, study: Study) -> bool:
    """Return whether the text at `path` was not written by this study: one that found nothing better leaves it."""
    card: object = None
    with suppress(OSError, ValueError):
        card = from_json(path.with_suffix(".json").read_bytes())
    return path.is_file() and not (isinstance(card, dict) and card.get("study") == study.name)


def _texts_of_best(study: Study, path: Path) -> dict[Path, str]:
    """Return path -> content of the winning text and its companions; {} without a winner."""
    if study.winner is None:
        return {}
    texts = {path: study.winner.context.text + "\n"}
    texts[path.with_suffix(".json")] = json_text(context_card(study, study.winner))
    if study.portfolio:
        texts[path.with_suffix(".portfolio.json")] = json_text(portfolio_card(study, study.portfolio))
    if study.benign and study.benign.context:
        texts[path.with_suffix(".benign.txt")] = study.benign.context.text + "\n"
        texts[path.with_suffix(".benign.json")] = json_text(benign_card(study, study.benign))
    return texts


def check_best(path: Path) -> None:
    """Raise ConfigError for a winning text's path that cannot be written, or that its card would overwrite."""
    if path.suffix == ".json" or path.is_dir() or not path.name:
        raise ConfigError(f"--best is '{path}', expected a text file such as best.txt; its card goes to best.json.")
    folder = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--best is '{path}', but its folder cannot be written; choose another.")
    if len(path.name.encode()) > LONGEST_NAME:
        raise ConfigError(f"--best is '…/{path.name[:60]}…': expected a name of at most {LONGEST_NAME} bytes.")


def write_training(run: TrainingRun, log: Sequence[LogLine], folder: Path) -> None:
    """Write training.json, training.html and README.md."""
    write_text(folder / TRAINING_FILE, RUN.dump_json(run, indent=1).decode() + "\n")
    write_text(folder / "training.html", training_page(run, log))
    write_model_card(run, None, folder)


def write_model_card(run: TrainingRun, card: Scorecard | None, folder: Path) -> None:
    """Write README.md, with a scorecard once there is one."""
    write_text(folder / "README.md", model_card(run, card))


def write_scorecard(card: Scorecard, path: Path) -> None:
    """Write a scorecard as JSON."""
    write_text(path, json_text(json_value(card)))


def read_study(folder: Path) -> Study:
    """Read the study of a folder; raises StudyError if there is none or it is of another version."""
    path = folder / STUDY_FILE
    study = _read(STUDY, path, "finished study", "run the search")
    kind: type[StudyConfig] = SearchConfig if study.kind is StudyKind.SEARCH else ScoreConfig
    try:
        if missing := sorted(kind.model_fields.keys() - study.settings.keys()):
            raise ConfigError(f"the setting {missing[0]} is missing.")
        make_config(kind, {key: study.settings[key] for key in kind.model_fields})
    except ConfigError as error:
        raise StudyError(f"{path}: no finished study of this version: {error} Run the search again.") from error
    return study


def read_training(folder: Path) -> TrainingRun:
    """Read the training.json of a checkpoint; raises StudyError without one, TrainingError for another format."""
    path = folder / TRAINING_FILE
    with suppress(OSError, ValueError):  # _read reports these
        check_format(from_json(path.read_bytes()), path)
    run = _read(RUN, path, "training", "run flipsearch train")
    try:
        check_method(run.method)
    except ConfigError as error:
        raise StudyError(f"{path}: no training of this version: {error}") from error
    return run


def _read(adapter: TypeAdapter[Record], path: Path, name: str, todo: str) -> Record:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"no {name} at '{path}': {error.strerror}; {todo} first.") from error
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
        raise StudyError(f"{path}: no {name} of this version: {why}; {todo} again.") from error


def write_labels(answers: Sequence[AnswerToLabel], path: Path) -> None:
    """Write one row per answer, with a column `label` for annotators to fill in; judging.labels reads it back.

    What spreadsheets would run is made inert. An id that they would take for a number (12345678e1234567) gets an
    apostrophe. The judge's verdicts are not in the file: annotators who see one tend to agree with it.
    """
    table = io.StringIO()
    # All quoted: Python leaves a lone carriage return bare, and readers would end the row there.
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(LABEL_COLUMNS)
    for answer in answers:
        place = answer.place
        texts = map(escape_formula, (answer.prompt, answer.response, place.study))
        ids = (place.prompt_id, place.context_id, place.rollout_id)
        inert_ids = (f"'{id}" if re.fullmatch(r"\d+(e\d+)?", id) else id for id in ids)
        writer.writerow([answer.label or "", *texts, *inert_ids, repr(place.probability)])
    write_text(path, BYTE_ORDER_MARK + table.getvalue().translate(_UNREADABLE))
