"""The Python API for judges: how well one agrees with human labels, what annotators should label, and fitting one.

study --label_answers--> file --annotators--> file --check_judge--> accuracy and labels --> the next report
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from flipsearch.backends.base import command_scope
from flipsearch.config import SearchConfig, StudyConfig
from flipsearch.core.errors import ConfigError, JudgeError, unknown_name
from flipsearch.core.files import content_folder
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.protocols import Judge
from flipsearch.judging.accuracy import (
    FOLDER,
    JudgeStress,
    load_accuracy,
    load_labels,
    measure_judge,
    save_accuracy,
    save_labels,
)
from flipsearch.judging.accuracy import stress_judge as measure_stress
from flipsearch.judging.compact_fitting import cross_validate, fit, fitting_rows
from flipsearch.judging.contract import check_identities
from flipsearch.judging.labels import merge_labels, read_labels, sample_answers, study_labels
from flipsearch.judging.library import load_judge, unload_after
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.ledger import Ledger
from flipsearch.prompts.attacks import attacked_prompts
from flipsearch.prompts.files import require_local_prompts
from flipsearch.prompts.sets import prompts_of
from flipsearch.reporting.files import read_study, study_config, write_labels
from flipsearch.reporting.study_file import STUDY_FILE, ledger_place, study_folder
from flipsearch.results import JudgeCheck, JudgeFit, LabellingResult


@command_scope()
def check_judge(
    judge: str, labels: str | Sequence[str], *, reports: Path | None = None, progress: Progress | None = None
) -> JudgeCheck:
    """Measure how a judge agrees with human labels, and store the figures under the judge's identity.

    `labels` are files as judging.labels reads them. The reports of studies that this judge decided then show flip rates
    corrected for its errors. Labels of rows that `label_answers` sampled from a study are stored in its folder too, for
    every judge, merged with earlier ones. Earlier figures of the judge are replaced; no answer is judged twice.
    """
    rows = read_labels([labels] if isinstance(labels, str) else labels)
    folder = reports or StudyConfig().reports
    names = dict.fromkeys(row.place.study for row in rows if row.place)
    places = [_labelled_study(name, folder) for name in names]
    by_study = {place: merge_labels(load_labels(place), study_labels(read_study(place), rows)) for place in places}
    loaded = load_judge(judge)
    check_identities(loaded)
    replaced = _earlier_sources(loaded, folder)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(Step(Phase.JUDGE_CHECK, judge, Activity.JUDGING), done, total, 0, 0)

    with unload_after(loaded):
        accuracy = measure_judge(loaded, rows, folder / FOLDER, report)
    for place, study in by_study.items():
        save_labels(study, place)
    return JudgeCheck(accuracy, save_accuracy(accuracy, folder), tuple(by_study), replaced)


@command_scope()
def stress_judge(judge: str) -> JudgeStress:
    """Show a judge made-up answers that are hard to judge by their form, and count what it gets right; keeps nothing.

    Help that follows a refusal, quoted refusals, marks of a guard, loops, code and so on: judges/stress_answers.toml.
    """
    loaded = load_judge(judge)
    check_identities(loaded)
    with unload_after(loaded):
        return measure_stress(loaded)


def label_answers(
    study: Path | str,
    *,
    to: Path | str,
    num: int = 50,
    num_contexts: int = 1,
    fetch: bool = False,
    reports: Path | None = None,
) -> LabellingResult:
    """Write the answers of a study that annotators should label to a csv file, and return what was written.

    About `num` harmful prompts are sampled, more often those with doubtful verdicts, each with its probability; each
    comes with its answer without context and those under the `num_contexts` best ones. Earlier labels are filled in.
    Prompts that the study took from elsewhere are fetched again only with `fetch`: the study may come from others.
    """
    if num < 1 or num_contexts < 1:
        raise ConfigError(f"num = {num} and num_contexts = {num_contexts}, expected at least 1 of each.")
    path = Path(to)
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"--to is '{to}', expected a file that ends in .csv.")
    if path.exists():
        raise ConfigError(f"--to is '{to}', which is there already, perhaps with labels; give another name.")
    folder = study_folder(study, reports)
    finished = read_study(folder)
    config = study_config(finished)
    if not fetch:
        named = [*([config.prompts] if config.prompts else []), *config.harmful, *config.benign]
        require_local_prompts(named, f"'{folder / STUDY_FILE}'", "give --fetch if you trust it")
    prompts = prompts_of(config)
    if isinstance(config, SearchConfig) and config.attacks:
        prompts = attacked_prompts(prompts, config.attacks, config)
    with Ledger(ledger_place(folder, reports), read_only=True) as ledger:
        answers = sample_answers(finished, ledger, prompts.prompts, num, num_contexts, load_labels(folder))
    write_labels(answers, path)
    return LabellingResult(
        path=path,
        num_prompts=sum(1 for _ in groupby(answers, key=lambda answer: answer.place.prompt_id)),
        num_answers=len(answers),
        num_labelled=sum(answer.label is not None for answer in answers),
        reports=folder.parent,
        judge=finished.settings.get("confirm_judge") or finished.settings["judge"],
    )


def fit_judge(labels: str | Sequence[str], *, to: Path | str) -> JudgeFit:
    """Fit the compact judge to human labels and write its weights; `compact(weights=FILE)` is the judge.

    The result holds its cross-validated agreement with the labels, beside that of the judge that this package ships.
    Raises ConfigError for too few labels, and for a file that cannot be written.
    """
    path = Path(to)
    if path.suffix != ".npz":
        raise ConfigError(f"--to is '{to}', expected a file that ends in .npz.")
    if path.exists():
        raise ConfigError(f"--to is '{to}', which is there already; give another name, or remove it.")
    answers = [row for row in read_labels([labels] if isinstance(labels, str) else labels) if row.label]
    judges = content_folder("judges")
    try:
        rows = fitting_rows(answers, RefusalRules(judges / "refusal_rules.toml"))
        path.parent.mkdir(parents=True, exist_ok=True)
        cross_validation = cross_validate(rows, judges / "compact.npz")
        fit(rows).save(path)
    except ValueError as error:
        raise ConfigError(f"nothing can be fitted to these {len(answers)} answers: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}.") from error
    return JudgeFit(path, dict(Counter(row.source for row in rows if row.is_labelled)), cross_validation)


def _earlier_sources(judge: Judge, reports: Path) -> Mapping[str, int]:
    """Return the sources of a judge's stored figures; none for a damaged file, which this run will replace."""
    try:
        before = load_accuracy(judge.identity, reports)
    except JudgeError:
        return {}
    return before.sources if before else {}


def _labelled_study(study: str, reports: Path) -> Path:
    """Return the folder of a study that a file of labels names; it must exist, as labels are written into it."""
    known = [path.parent.name for path in reports.glob(f"*/{STUDY_FILE}")]
    if study not in known:
        todo = "Give its --reports; or leave the column study out, and the labels count for the judge alone."
        raise JudgeError(f"the labels are of {unknown_name('study', study, known, todo)}")
    return reports / study
