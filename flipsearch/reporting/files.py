"""The files of finished studies, trainings and evaluations, and of answers for annotators.

Each is written whole or not at all (core/files.py). What is read back is validated: another version or shape is refused
in one line.
"""

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from flipsearch.backends.models import TRAINING_FILE
from flipsearch.config import ScoreConfig, SearchConfig, StudyConfig
from flipsearch.core.errors import ConfigError, FlipsearchError, StudyError
from flipsearch.core.files import escape_formula, json_text, write_text
from flipsearch.core.measurements import json_value
from flipsearch.core.settings import LONGEST_NAME, make_config, typed_path
from flipsearch.core.studies import EarlierBest, Study, StudyKind
from flipsearch.core.trainings import (
    SCORECARD_FORMAT,
    ChangedAnswer,
    LoggedAnswer,
    LogLine,
    Scorecard,
    TrainingRun,
    check_format,
    check_method,
)
from flipsearch.evaluation.plan import SCORECARD_FILE
from flipsearch.judging.labels import PLACE_COLUMNS, AnswerToLabel
from flipsearch.ledger import Ledger
from flipsearch.reporting.cards import model_card
from flipsearch.reporting.columns import csv_text, leaderboard
from flipsearch.reporting.outcomes import SCORECARD_PAGE, TRAINING_PAGE, TrainedUnder, trained_under
from flipsearch.reporting.pages import leaderboard_page, training_page
from flipsearch.reporting.scorecard_page import scorecard_page
from flipsearch.reporting.study_file import (
    CHECKPOINTS_FILE,
    EARLIER_FILE,
    SETTINGS_FILE,
    STUDY_FILE,
    UNFINISHED_FILE,
    benign_card,
    context_card,
    first_fault,
    portfolio_card,
    read_study_file,
    write_study_file,
)
from flipsearch.reporting.verdict import verdict
from flipsearch.templating.library import empty_card

RUN, SCORECARD = TypeAdapter(TrainingRun), TypeAdapter(Scorecard)
LABEL_COLUMNS = ("label", "prompt", "response", *PLACE_COLUMNS)
BYTE_ORDER_MARK = "\ufeff"
"""At the start of the label file: without it spreadsheets misread UTF-8, and spoil the texts on saving."""
_UNREADABLE = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")


def write_study(study: Study, folder: Path, ledger: Ledger | None = None) -> None:
    """Write the study, leaderboard.csv, leaderboard.html and best.txt, with what goes with it; see write_best.

    The page shows the answers that are in the ledger. An unfinished study has a file of its own, until it is finished.
    """
    write_study_file(study, folder / (UNFINISHED_FILE if study.unfinished else STUDY_FILE))
    write_text(folder / "leaderboard.csv", csv_text(leaderboard(study)))
    write_text(folder / "leaderboard.html", leaderboard_page(study, ledger, _trained_under(study, folder)))
    if not study.unfinished:
        write_best(study, folder / "best.txt")
        (folder / UNFINISHED_FILE).unlink(missing_ok=True)


def _trained_under(study: Study, folder: Path) -> list[TrainedUnder]:
    """Return what was trained under the contexts of a study, as far as it is still there and of this version."""
    trained, ids = [], {trial.context.context_id for trial in study.trials}
    for place in checkpoints_of(folder):
        with suppress(FlipsearchError):
            run, card = read_training(folder / place), None
            with suppress(StudyError):
                card = read_scorecard(folder / place)
            trained.append(trained_under(ids, run, card, place, folder))
    return trained


def checkpoints_of(folder: Path) -> list[str]:
    """Return where the checkpoints of a study lie, seen from its folder."""
    lines: list[str] = []
    with suppress(OSError, ValueError):
        lines = (folder / CHECKPOINTS_FILE).read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(filter(None, lines)))


def note_checkpoint(folder: Path, checkpoint: Path) -> None:
    """Note in a study's folder that a checkpoint was trained under its contexts."""
    places = dict.fromkeys([*checkpoints_of(folder), Path(os.path.relpath(checkpoint, folder)).as_posix()])
    write_text(folder / CHECKPOINTS_FILE, "\n".join(places) + "\n")


def write_best(study: Study, path: Path) -> None:
    """Write the confirmed text alone to `path`, and beside it its context card (.json) and its companions.

    These are the portfolio (.portfolio.json) and, if there is one, the context for benign prompts (.benign.txt,
    .benign.json). What an earlier search left there is removed. Where no context is confirmed the card holds no text
    but says why: it is what a command shows that is given `path` all the same.
    """
    remove_best(path)
    if study.winner is None or not study.is_confirmed:
        if study.kind is StudyKind.SEARCH:
            write_text(path.with_suffix(".json"), json_text(empty_card(study.name, verdict(study).sentence)))
        return
    write_text(path, study.winner.context.text + "\n")
    write_text(path.with_suffix(".json"), json_text(context_card(study, study.winner)))
    if study.portfolio:
        write_text(path.with_suffix(".portfolio.json"), json_text(portfolio_card(study, study.portfolio)))
    if study.benign and study.benign.context:
        write_text(path.with_suffix(".benign.txt"), study.benign.context.text + "\n")
        write_text(path.with_suffix(".benign.json"), json_text(benign_card(study, study.benign)))


def remove_best(path: Path) -> None:
    """Remove the winning text that a search wrote to `path`, and all that goes with it; files of others stay."""
    for text, card in ((path, ".json"), (path.with_suffix(".benign.txt"), ".benign.json"), (None, ".portfolio.json")):
        written = path.with_suffix(card)
        if (content := _card_in(written)) is not None:
            for stale in filter(None, (None if _is_empty(content) else text, written)):
                with suppress(OSError):
                    stale.unlink()


def _card_in(path: Path) -> dict[str, Any] | None:
    """Return the card in a file; None if it holds none."""
    content: object = None
    with suppress(OSError, ValueError):
        content = from_json(path.read_bytes())
    return content if isinstance(content, dict) and "card_version" in content else None


def _is_empty(card: Mapping[str, Any]) -> bool:
    """Return whether a card says that there is no text: one beside it is somebody's own."""
    return card.get("text", "") is None


def earlier_best(path: Path, study: Study) -> EarlierBest | None:
    """Return what another study left at `path`; None if nothing is there, or this study's own."""
    card = _card_in(path.with_suffix(".json"))
    if not path.is_file():
        return None
    if card is None or _is_empty(card):
        return EarlierBest(path, "", False)
    if card.get("study") == study.name:
        return None
    mine = context_card(study, study.winner) if study.winner else {}

    def basis(card: Any) -> list[Any]:
        return [card.get("model_id"), card["prompts"]["prompts_id"], card["judge"]["identity"], card["sampling"]]

    flips_more = False
    with suppress(LookupError, TypeError, AttributeError):  # a card is a file that may be anyone's
        rates = [cards["metrics"]["confirm"]["flip_rate"] for cards in (card, mine)]
        is_same = basis(card) == basis(mine) and rates[0]["n"] == rates[1]["n"]
        flips_more = is_same and rates[0]["count"] > rates[1]["count"]
    return EarlierBest(path, str(card.get("study") or ""), flips_more)


def check_best(path: Path) -> None:
    """Raise ConfigError for a winning text's path that cannot be written, or that its card would overwrite."""
    if path.suffix == ".json" or path.is_dir() or not path.name:
        raise ConfigError(f"--best is '{path}', expected a text file such as best.txt; its card goes to best.json.")
    if path.with_suffix(".json").exists() and _card_in(path.with_suffix(".json")) is None:
        card = f"'{path.with_suffix('.json')}', where its card goes, is none of a search and would be lost"
        raise ConfigError(f"--best is '{path}', but {card}; move it, or give another --best.")
    folder = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--best is '{path}', but its folder cannot be written; choose another.")
    if len(path.name.encode()) > LONGEST_NAME:
        raise ConfigError(f"--best is '…/{path.name[:60]}…': expected a name of at most {LONGEST_NAME} bytes.")


def write_training(
    run: TrainingRun,
    log: Sequence[LogLine],
    folder: Path,
    answers: Sequence[LoggedAnswer] = (),
    seen_from: Path | None = None,
) -> None:
    """Write training.json, training.html and README.md; links are those of a page in `seen_from` (the folder)."""
    write_text(folder / TRAINING_FILE, RUN.dump_json(run, indent=1).decode() + "\n")
    write_training_page(run, log, folder, answers, seen_from)
    write_model_card(run, None, folder)


def write_training_page(
    run: TrainingRun,
    log: Sequence[LogLine],
    folder: Path,
    answers: Sequence[LoggedAnswer],
    seen_from: Path | None = None,
    card: Scorecard | None = None,
) -> None:
    """Write training.html, with a link to the scorecard's page once there is one."""
    place = seen_from or folder
    write_text(folder / TRAINING_PAGE, training_page(run, log, answers, place, card))


def write_model_card(run: TrainingRun, card: Scorecard | None, folder: Path) -> None:
    """Write README.md, with a scorecard once there is one."""
    write_text(folder / "README.md", model_card(run, card))


def write_scorecard(
    card: Scorecard, path: Path, changes: Sequence[ChangedAnswer] = (), run: TrainingRun | None = None
) -> None:
    """Write a scorecard as JSON, and beside it as a page with answers that changed; `run` made the checkpoint."""
    write_text(path, json_text(json_value(card)))
    write_text(path.with_name(SCORECARD_PAGE), scorecard_page(card, changes, run, path.parent))


def read_study(folder: Path, *, or_unfinished: bool = False) -> Study:
    """Read the study of a folder; raises StudyError if there is none or it is of another version.

    `or_unfinished` takes one that still runs, or was stopped, where none is finished, or it was continued since.
    """
    path, unfinished = folder / STUDY_FILE, folder / UNFINISHED_FILE
    if or_unfinished and (unfinished.exists() or not path.exists()) and (folder / SETTINGS_FILE).is_file():
        path = unfinished
        if not path.exists() and not (folder / EARLIER_FILE).exists():
            why = "there is nothing to report yet: a search has it from its first rung on, a score at its end"
            raise StudyError(f"study '{folder.name}': {why}. If it does not run any more, its command continues it.")
    study = read_study_file(path)
    try:
        study_config(study)
    except ConfigError as error:
        raise StudyError(f"{path}: no finished study of this version: {error} Run the search again.") from error
    return study


def study_config(study: Study) -> StudyConfig:
    """Return the settings of a study, checked; raises ConfigError."""
    kind: type[StudyConfig] = SearchConfig if study.kind is StudyKind.SEARCH else ScoreConfig
    if missing := sorted(kind.model_fields.keys() - study.settings.keys()):
        raise ConfigError(f"the setting {missing[0]} is missing.")
    return make_config(kind, {key: study.settings[key] for key in kind.model_fields})


def read_training(folder: Path) -> TrainingRun:
    """Read the training.json of a checkpoint; raises StudyError without one, TrainingError for another format."""
    path = folder / TRAINING_FILE
    try:
        content = path.read_bytes()
        with suppress(ValueError):  # reported below
            check_format(from_json(content), path)
        run = RUN.validate_json(content)
        check_method(run.method)
    except OSError as error:
        raise StudyError(f"no training at '{path}': {error.strerror}; run flipsearch train first.") from error
    except ValidationError as error:
        why = f"{first_fault(error)}; run flipsearch train again."
        raise StudyError(f"{path}: no training of this version: {why}") from error
    except ConfigError as error:
        raise StudyError(f"{path}: no training of this version: {error}") from error
    amounts = run.num_steps, run.num_rollouts, run.num_tokens, run.wall_s, *run.num_left_out.values()
    if not all(0 <= amount < math.inf for amount in amounts):
        raise StudyError(f"{path}: a count or time in it is none (negative, or no number); run flipsearch train again.")
    return run


def read_scorecard(folder: Path) -> Scorecard:
    """Read the scorecard of an evaluated model's folder; StudyError without one, or for one of another version."""
    path = folder / SCORECARD_FILE
    try:
        content = path.read_bytes()
        card = SCORECARD.validate_json(content)
    except OSError as error:
        why = f"flipsearch evaluate {typed_path(folder)}"
        raise StudyError(f"no scorecard at '{path}': {error.strerror}; make one: {why}.") from error
    except ValidationError as error:
        raise StudyError(f"{path}: no scorecard of this version: {first_fault(error)}; evaluate again.") from error
    if card.card_version != SCORECARD_FORMAT:
        version = f"is of version {card.card_version}, expected {SCORECARD_FORMAT}"
        raise StudyError(f"the scorecard '{path}' {version}; evaluate again.")
    if not _is_possible(card):
        raise StudyError(f"{path}: a rate or score in it is none (out of range, or no number); evaluate again.")
    return card


def _is_possible(card: Scorecard) -> bool:
    """Return whether all scores are in [0, 1], and all rates and changes, with their intervals, in [-1, 1]."""
    rows = card.scores
    sides = [side for row in rows for side in (row.new, row.base) if side]
    totals = [part for both in (card.composite, card.reasoning) if both for part in (both.new, both.base, both.change)]
    measured = [part for side in sides for part in (side.rate, side.coverage)]
    every = [part for part in (card.tax, card.contraction, *(r.change for r in rows), *totals, *measured) if part]
    ends = [end for part in every for end in (part.value, part.low, part.high)]
    scores = [score for row in rows for score in row.values.values()]
    counts = [*(part.n for part in every), *(num for side in sides for num in (side.num_prompts, *side.kinds.values()))]
    return (
        all(score is None or 0 <= score <= 1 for score in scores)
        and all(end is None or -1 <= end <= 1 for end in ends)
        and all(num >= 0 for num in counts)
    )


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
