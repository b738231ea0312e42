"""score, check, report and compare: contexts that one has, and studies and evaluations that are finished."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from os.path import normpath, relpath
from pathlib import Path

from flipsearch.backends.models import TRAINING_FILE
from flipsearch.config import ScoreConfig
from flipsearch.core.errors import ConfigError, FlipsearchError, NothingToFlipError, PoorCoverageError
from flipsearch.core.files import is_taken, write_text
from flipsearch.core.progress import Progress
from flipsearch.core.trainings import TrainingRun
from flipsearch.evaluation.plan import SCORECARD_FILE
from flipsearch.judging.accuracy import with_human_labels
from flipsearch.ledger import LOCK_SUFFIX, Ledger
from flipsearch.prompts.sets import prompts_of
from flipsearch.reporting.compare import Comparison, compare_studies
from flipsearch.reporting.files import (
    checkpoints_of,
    note_checkpoint,
    read_scorecard,
    read_study,
    read_training,
    write_study,
)
from flipsearch.reporting.scorecard_page import ScorecardComparison, compare_scorecards
from flipsearch.reporting.study_file import LEDGER_FILE, STUDY_FILE, expects_sound_study, study_folder
from flipsearch.reporting.verdict import criteria, junit_error, junit_xml
from flipsearch.results import ContextCheck, EvaluationResult, SearchResult
from flipsearch.searching.study import run_score
from flipsearch.settings import Given, library_for, takes, with_card
from flipsearch.templating.library import given_cards, given_contexts
from flipsearch.workspace import study_session


@takes(ScoreConfig)
def score(given: Given[ScoreConfig], context: str | Sequence[str], *, progress: Progress | None = None) -> SearchResult:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    """
    return _scored(given.config(), [context] if isinstance(context, str) else context, progress)


@takes(ScoreConfig)
def check(
    given: Given[ScoreConfig],
    context: str | Sequence[str],
    *,
    min_flip: float | None = None,
    max_over_refusal: float | None = None,
    junit: Path | str | None = None,
    progress: Progress | None = None,
) -> ContextCheck:
    """Measure contexts as `score` does, and say whether each is good enough: for continuous integration.

    `min_flip` is the least flip rate, `max_over_refusal` the highest share of benign prompts refused beyond those
    refused without a context; each is a fraction. What cannot be measured is not good enough. A card says which model
    and prompts it is for, and is measured on its sealed confirm prompts unless another `split` is given. `junit` is a
    file to write the outcome to, as JUnit XML.
    """
    for flag, value in (("--min-flip", min_flip), ("--max-over-refusal", max_over_refusal)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{flag} is {value:g}, expected a fraction from 0 to 1, such as 0.8.")
    if min_flip is None and max_over_refusal is None:
        raise ConfigError("nothing to check: give --min-flip, --max-over-refusal or both, e.g. --min-flip 0.8.")
    if junit and (Path(junit).is_dir() or not Path(junit).absolute().parent.is_dir()):
        raise ConfigError(f"--junit is '{junit}', expected a file in a folder that is there.")
    texts = [context] if isinstance(context, str) else list(context)
    config = with_card(given, texts).config()
    if any(map(given_cards, texts)) and config.split is None and not config.harmful:
        config = config.model_copy(update={"split": "confirm"})
    try:
        result = _scored(config, texts, progress)
    except (NothingToFlipError, PoorCoverageError) as error:
        if junit:
            write_text(Path(junit), junit_error(texts, str(error)))
        raise
    checked = ContextCheck(result, tuple(criteria(result.study, min_flip, max_over_refusal)))
    if junit:
        write_text(Path(junit), junit_xml(result.study, checked.criteria))
    return checked


def _scored(config: ScoreConfig, texts: Sequence[str], progress: Progress | None) -> SearchResult:
    contexts = given_contexts(texts, library_for(config.model, config.contexts), config.placement)
    ids = sorted(context.context_id for context in contexts)
    name, prompts = config.study_name(ids), prompts_of(config)
    with study_session(config, f"score {' '.join(ids)}", prompts, name, progress) as session:
        session.log_start()
        study = run_score(config, session.runner, contexts, prompts.prompts, name, session.others.second)
        return session.finish(study, None)


def report(study: Path | str, *, reports: Path | None = None) -> SearchResult:
    """Write a study's files again, with what is known of its judge by now; nothing is generated or judged.

    A study that was stopped is reported as far as it came, and so is one that still runs: its folder is only read.
    """
    folder = study_folder(study, reports)
    path = folder / LEDGER_FILE
    runs = is_taken(path.with_name(path.name + LOCK_SUFFIX))
    stored = read_study(folder, or_unfinished=True)
    with (
        expects_sound_study(folder / STUDY_FILE),
        Ledger(path, read_only=True) if path.is_file() else nullcontext() as ledger,
    ):
        result = stored if stored.unfinished else with_human_labels(stored, folder)
        if not (runs and stored.unfinished):
            write_study(result, folder, ledger)
    return SearchResult(result, folder, folder / "best.txt" if result.is_confirmed else None)


def name_checkpoint(run: TrainingRun, checkpoint: Path) -> None:
    """Let the studies that found a training's contexts know of its checkpoint, on their pages too."""
    for study in _studies_of(run, checkpoint):
        note_checkpoint(study, checkpoint)
        _renew(study)


def renew_pages(run: TrainingRun, checkpoint: Path) -> None:
    """Write the pages of the studies that name a checkpoint again.

    Its training.json may be anyone's: only a study that knows of the checkpoint is written to.
    """
    for study in _studies_of(run, checkpoint):
        if Path(relpath(checkpoint, study)).as_posix() in checkpoints_of(study):
            _renew(study)


def _studies_of(run: TrainingRun, checkpoint: Path) -> list[Path]:
    """Return the folders of the finished studies that found a training's contexts."""
    folders = [Path(normpath(checkpoint / page)).parent for page in run.study_pages.values()]
    return [folder for folder in folders if (folder / STUDY_FILE).is_file()]


def _renew(study: Path) -> None:
    with suppress(FlipsearchError):  # no reason to fail after hours of training; report says what is wrong with it
        report(study)


def report_checkpoint(checkpoint: Path | str) -> EvaluationResult:
    """Return the scorecard of an evaluated checkpoint, or of an evaluation's folder under the reports."""
    return EvaluationResult(read_scorecard(Path(checkpoint)), Path(checkpoint) / SCORECARD_FILE)


def compare_checkpoints(checkpoints: Sequence[Path | str]) -> ScorecardComparison:
    """Return evaluated models beside each other and their base: their scorecards, and paired differences.

    Each is a folder with a scorecard.json: a checkpoint, or an evaluation under the reports.
    """
    folders = [Path(checkpoint) for checkpoint in checkpoints]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError(
            "a comparison takes two or more checkpoints with a scorecard.json, each once; got the same one twice."
            if len(folders) > 1
            else "a comparison takes two or more checkpoints with a scorecard.json; got one."
        )
    cards = [read_scorecard(folder) for folder in folders]
    short = Counter(folder.name for folder in folders)
    names = [(folder.name if short[folder.name] == 1 else str(folder)) + _control_of(folder) for folder in folders]
    return compare_scorecards(names, cards, list(map(str, folders)))


def _control_of(folder: Path) -> str:
    """What a name says of a checkpoint that is there to be compared with; "" for any other."""
    if not (folder / TRAINING_FILE).is_file():
        return ""
    control = read_training(folder).control
    return f" (control: {control})" if control else ""


def compare(studies: Sequence[Path | str], *, reports: Path | None = None) -> Comparison:
    """Return what the contexts that finished studies share do in each: other models, judges or seeds; paired.

    Studies of the same name, in several folders of reports, are named by their folders.
    """
    if len(studies) < 2:
        raise ConfigError("compare takes two or more studies, by name or folder.")
    folders = [study_folder(study, reports) for study in studies]
    for number, folder in enumerate(folders):
        if folder.resolve() in (earlier.resolve() for earlier in folders[:number]):
            raise ConfigError(f"the study '{folder}' is given twice; name each study once.")
    stored = [read_study(folder, or_unfinished=not (folder / STUDY_FILE).exists()) for folder in folders]
    num = Counter(study.name for study in stored)
    named = [
        study if num[study.name] == 1 else replace(study, name=str(folder))
        for study, folder in zip(stored, folders, strict=True)
    ]
    with expects_sound_study(folders[0].parent):
        return compare_studies(named)
