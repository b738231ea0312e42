"""The files of a finished training: training.json, the page, and the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from flipsearch.backends.models import TRAINING_FILE
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.files import write_text
from flipsearch.core.scorecards import Scorecard
from flipsearch.core.trainings import LogLine, TrainingRun, check_format, check_method
from flipsearch.reporting.model_card import model_card
from flipsearch.reporting.training_page import training_page

RUN = TypeAdapter(TrainingRun)


def write_training(run: TrainingRun, log: Sequence[LogLine], folder: Path) -> None:
    """Write training.json, training.html and README.md; raises StudyError for a full disk or a read-only folder."""
    write_text(folder / TRAINING_FILE, RUN.dump_json(run, indent=1).decode() + "\n")
    write_text(folder / "training.html", training_page(run, log))
    write_model_card(run, None, folder)


def write_model_card(run: TrainingRun, card: Scorecard | None, folder: Path) -> None:
    """Write README.md, with a scorecard once there is one."""
    write_text(folder / "README.md", model_card(run, card))


def training_dict(run: TrainingRun) -> dict[str, Any]:
    """Return the record as JSON-able values: what training.json holds."""
    found: dict[str, Any] = RUN.dump_python(run, mode="json")
    return found


def read_training(folder: Path) -> TrainingRun:
    """Read training.json; raises StudyError if there is none, TrainingError if it is of another format."""
    path = folder / TRAINING_FILE
    try:
        content = path.read_bytes()
        check_format(from_json(content), path)
        run = RUN.validate_json(content)
        check_method(run.method)
    except OSError as error:
        raise StudyError(f"no training at '{path}': {error.strerror}.") from error
    except ValidationError as error:
        raise StudyError(f"{path}: no training of this version: {error.errors()[0]['msg']}.") from error
    except (ValueError, ConfigError) as error:
        raise StudyError(f"{path}: no training of this version: {error}.") from error
    return run
