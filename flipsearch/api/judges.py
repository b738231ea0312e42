"""The front door's functions on judges: how far one agrees with people, what they should label, and fitting one.

answers of a study --label_answers--> file --people--> file --check_judge--> accuracy and labels --> the next report
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from flipsearch.config import ModelConfig, ReportConfig, ScoreConfig, StudyConfig, make_config, read_toml
from flipsearch.core.errors import ConfigError, JudgeError, unknown_name
from flipsearch.core.package import content_folder
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.protocols import Judge
from flipsearch.core.studies import StudyKind
from flipsearch.judging.accuracy import FOLDER, load_accuracy, measure_judge, save_accuracy
from flipsearch.judging.compact.fitting import fit, learnt, tried
from flipsearch.judging.contract import check_identities
from flipsearch.judging.labelling import StudyLabel, draw_answers, joined, load_labels, save_labels, study_labels
from flipsearch.judging.labels import LabelledAnswer, read_labels
from flipsearch.judging.library import load_judge, unload_after
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.ledger import Ledger
from flipsearch.prompts.sets import prompts_of
from flipsearch.reporting.files import STUDY_FILE, read_study, write_labels
from flipsearch.results import JudgeCheck, JudgeFit, LabellingResult
from flipsearch.workspace import SETTINGS_FILE, ledger_place, study_folder


def check_judge(
    judge: str,
    labels: str | Sequence[str],
    *,
    reports: Path | None = None,
    progress: Progress | None = None,
) -> JudgeCheck:
    """Measure how a judge agrees with the people who labelled some answers, and keep it under the judge's identity.

    `labels` are files as judging.labels reads them. The reports of studies that this judge decided then show flip rates
    with its errors taken back. Rows that `label_answers` drew from a study are kept in its folder too, for every judge,
    beside what people said there before. What was measured of the judge before is replaced; an answer that it judged
    there is not judged again.
    """
    rows = read_labels([labels] if isinstance(labels, str) else labels)
    folder = reports or ReportConfig().reports
    by_study = _by_study(rows, folder)
    loaded = load_judge(judge)
    check_identities(loaded)
    replaced = _replaced(loaded, folder)
    with unload_after(loaded):
        measured = measure_judge(loaded, rows, folder / FOLDER, _told(progress, judge))
    for place, some in by_study.items():
        save_labels(some, place)
    return JudgeCheck(measured, save_accuracy(measured, folder), tuple(by_study), replaced)


def label_answers(
    study: Path | str, *, to: Path | str, num: int = 50, num_contexts: int = 1, reports: Path | None = None
) -> LabellingResult:
    """Write the answers of a study that people should label to a csv file, and return what was written.

    About `num` harmful prompts are drawn, those likelier whose verdicts are doubtful, each with its probability; for
    each there is the answer without context and those under the `num_contexts` best ones. What people said before is
    filled in.
    """
    if num < 1 or num_contexts < 1:
        raise ConfigError(f"num = {num} and num_contexts = {num_contexts}, expected at least 1 of each.")
    if Path(to).suffix.lower() != ".csv":
        raise ConfigError(f"--to is '{to}', expected a file that ends in .csv.")
    if Path(to).exists():
        raise ConfigError(f"--to is '{to}', which is there already, perhaps with labels; give another name.")
    folder = study_folder(study, reports)
    found = read_study(folder)
    kind: type[ModelConfig] = StudyConfig if found.kind is StudyKind.SEARCH else ScoreConfig
    prompts = prompts_of(make_config(kind, read_toml(folder / SETTINGS_FILE))).prompts
    with Ledger(ledger_place(folder, reports), read_only=True) as ledger:
        drawn = draw_answers(found, ledger, prompts, num, num_contexts, load_labels(folder))
    write_labels(drawn, Path(to))
    num_prompts = sum(1 for _ in groupby(drawn, key=lambda one: one.place.prompt_id))
    judge = found.settings.get("confirm_judge") or found.settings["judge"]
    labelled = sum(one.label is not None for one in drawn)
    return LabellingResult(Path(to), num_prompts, len(drawn), labelled, folder.parent, judge)


def fit_judge(labels: str | Sequence[str], *, to: Path | str) -> JudgeFit:
    """Fit the compact judge to labelled answers and write its weights; `compact(weights=FILE)` is the judge.

    What is returned says how far people agree with it on prompts that were left out, and with the one of this package.
    Raises ConfigError for labels that are too few, and for a file that cannot be written.
    """
    path = Path(to)
    if path.suffix != ".npz":
        raise ConfigError(f"--to is '{to}', expected a file that ends in .npz.")
    if path.exists():
        raise ConfigError(f"--to is '{to}', which is there already; give another name, or remove it.")
    rows = [row for row in read_labels([labels] if isinstance(labels, str) else labels) if row.label]
    rules = RefusalRules(content_folder("judges") / "refusal_rules.toml")
    try:
        answers = learnt(rows, rules)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = tried(answers, content_folder("judges") / "compact.npz")
        fit(answers).save(path)
    except ValueError as error:
        raise ConfigError(f"nothing can be fitted to these {len(rows)} answers: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}.") from error
    return JudgeFit(path, dict(Counter(row.source for row in answers if row.is_told)), found)


def _replaced(judge: Judge, reports: Path) -> Mapping[str, int]:
    """The sources of what was measured of a judge before; none where that cannot be read: this is what mends it."""
    try:
        before = load_accuracy(judge.identity, reports)
    except JudgeError:
        return {}
    return before.sources if before else {}


def _by_study(rows: Sequence[LabelledAnswer], reports: Path) -> dict[Path, list[StudyLabel]]:
    """Folder -> all that people said of a study's answers, for the studies that rows were drawn from."""
    names = dict.fromkeys(row.place.study for row in rows if row.place)
    places = [reports / _known(name, reports) for name in names]
    return {place: joined(load_labels(place), study_labels(read_study(place), rows)) for place in places}


def _known(study: str, reports: Path) -> str:
    """The name of a study under the reports, as a file of labels gives it: nothing is written anywhere else."""
    known = [path.parent.name for path in reports.glob(f"*/{STUDY_FILE}")]
    if study not in known:
        todo = "Give its --reports; or leave the column study out, and the labels count for the judge alone."
        raise JudgeError(f"the labels are of {unknown_name('study', study, known, todo)}")
    return study


def _told(progress: Progress | None, judge: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    step = Step(Phase.JUDGE_CHECK, judge, Activity.JUDGING)
    return lambda done, total: progress(step, done, total, 0, 0)
