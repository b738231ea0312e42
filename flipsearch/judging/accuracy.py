"""How well a judge agrees with human labels, what that corrects in a study, and which forms of answers it gets wrong.

    labelled answers --measure_judge--> JudgeAccuracy, stored under the judge's identity --with_judge_error--> Study
    judges/stress_answers.toml --stress_judge--> JudgeStress

The stress answers are made up and need no human labels: each stress is a form, such as help that follows a refusal,
around a few requests. A share there is no accuracy on real answers; it shows where a judge is weak.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from flipsearch.core.errors import JudgeError
from flipsearch.core.files import content_folder, write_text
from flipsearch.core.measurements import REFUSAL_THRESHOLD, Estimate, Flip, json_value
from flipsearch.core.protocols import Judge
from flipsearch.core.records import AnswerKind, Exchange, Label, Prompt, Verdict, content_id
from flipsearch.core.studies import JudgeAgreement, Study, Trial
from flipsearch.judging.contract import judge_answers, run_judge, were_fitted_to
from flipsearch.judging.labels import LABELS_FILE, HumanLabel, LabelledAnswer, StudyLabel, merge_labels
from flipsearch.statistics.agreement import Agreement, agreement, corrected_flip_rate, prediction_powered_mean

Question = Literal["unsafe", "refusal"]
QUESTIONS: tuple[Question, ...] = get_args(Question)
QUESTION_OF: Mapping[HumanLabel | None, Question] = {
    "unsafe": "unsafe",
    "safe": "unsafe",
    "refusal": "refusal",
    "compliance": "refusal",
}
"""The question that a label answers; a partial refusal answers neither."""
FOLDER = "_judges"
"""Under the reports: one file of figures per identity, one ledger of verdicts per judge."""
_Judged = tuple[LabelledAnswer, Verdict]


@dataclass(frozen=True, slots=True)
class JudgeAccuracy:
    """Agreement of a judge with human labels."""

    judge: str
    identity: str
    num_left_out: int
    """Partial refusals."""
    questions: Mapping[Question, Agreement]
    """Each on the rows whose label answers it; the one with more rows first."""
    by_source: Mapping[str, Mapping[Question, Agreement]]
    sources: Mapping[str, int]
    fitted_to: Mapping[Question, int] = field(default_factory=dict)
    """Question -> rows that the judge was fitted to, which flatter it."""
    studies: Mapping[str, int] = field(default_factory=dict)
    """Study -> rows on harm that were sampled from it."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: the first question's figures at the top, each with value, low, high and n."""
        first = next(iter(self.questions))
        return {
            "judge": self.judge,
            "identity": self.identity,
            "question": first,
            **_figures(self.questions[first]),
            "questions": {question: _figures(figures) for question, figures in self.questions.items()},
            "by_source": {
                source: {question: _figures(figures) for question, figures in questions.items()}
                for source, questions in self.by_source.items()
            },
            "sources": dict(self.sources),
            "fitted_to": dict(self.fitted_to),
            "num_left_out": self.num_left_out,
        }


def _figures(agreed: Agreement) -> dict[str, Any]:
    names = ("accuracy", "kappa", "f1", "sensitivity", "specificity", "coverage")
    figures = {name: getattr(agreed, name) for name in names}
    return {name: json_value(getattr(figure, "estimate", figure)) for name, figure in figures.items()}


def measure_judge(
    judge: Judge,
    rows: Sequence[LabelledAnswer],
    folder: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> JudgeAccuracy:
    """Return how a judge agrees with the human labels of `rows`; intervals are over prompts, not rows.

    Its verdicts are kept in `folder`, so that no answer is judged twice; None keeps none. Rows that were sampled from a
    study count in inverse proportion to their probability, and each answer once, so that the figures are those of the
    study's answers, not of the doubtful ones among them.
    Raises JudgeError if no label answers a question, or if the judge fails or scores nothing.
    """
    labelled = [row for row in merge_labels(rows) if row.label in QUESTION_OF]
    if not labelled:
        raise JudgeError("no label answers a question: expected unsafe, safe, refusal or compliance.")
    exchanges = [row.exchange for row in labelled]
    verdicts = judge_answers(judge, exchanges, folder, progress)
    if all(verdict.label is Label.UNSCORED for verdict in verdicts):
        reason = Counter(verdict.reason for verdict in verdicts).most_common(1)[0][0]
        raise JudgeError(f"judge '{judge.name}' scores none of {len(verdicts)} answers: {reason[:200]}.")
    by_source: dict[str, list[_Judged]] = {}
    for row, verdict in zip(labelled, verdicts, strict=True):
        by_source.setdefault(row.source, []).append((row, verdict))
    fitted = [row for row, is_fitted in zip(labelled, were_fitted_to(judge, exchanges), strict=True) if is_fitted]
    return JudgeAccuracy(
        judge=judge.name,
        identity=judge.identity,
        num_left_out=sum(row.label == "partial" for row in rows),
        questions=_by_question([pair for pairs in by_source.values() for pair in pairs]),
        by_source={source: _by_question(pairs) for source, pairs in by_source.items()},
        sources={source: len(pairs) for source, pairs in by_source.items()},
        fitted_to=Counter(QUESTION_OF[row.label] for row in fitted),
        studies=Counter(row.place.study for row in labelled if row.place and QUESTION_OF[row.label] == "unsafe"),
    )


def save_accuracy(accuracy: JudgeAccuracy, reports: Path) -> Path:
    """Write the figures where `load_accuracy` finds them, replacing earlier ones of the same judge."""
    path = _path(accuracy.identity, reports)
    write_text(path, _ACCURACY.dump_json(accuracy, indent=1).decode(), JudgeError)
    return path


def load_accuracy(identity: str, reports: Path) -> JudgeAccuracy | None:
    """Return the stored figures of the judge of an identity, or None. Raises JudgeError for a damaged file."""
    path = _path(identity, reports)
    try:
        accuracy = _ACCURACY.validate_python(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise JudgeError(
            f"'{path}' cannot be read as a judge's accuracy; run `flipsearch judge check` again."
        ) from error
    return accuracy if accuracy.identity == identity else None


_ACCURACY = TypeAdapter(JudgeAccuracy)


def _path(identity: str, reports: Path) -> Path:
    return reports / FOLDER / f"{content_id('accuracy', identity)}.json"  # an identity of a plug-in can be any text


def save_labels(labels: Sequence[StudyLabel], folder: Path) -> None:
    """Write the labels of a study's answers into its folder, replacing those before. Raises JudgeError."""
    write_text(folder / LABELS_FILE, _LABELS.dump_json(list(labels), indent=1).decode(), JudgeError)


def load_labels(folder: Path) -> list[StudyLabel]:
    """Return the labels of a study's answers; [] if there are none. JudgeError for a damaged file."""
    path = folder / LABELS_FILE
    try:
        return _LABELS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise JudgeError(
            f"'{path}' cannot be read; delete it and run `flipsearch judge check` with the labels again."
        ) from error


_LABELS = TypeAdapter(list[StudyLabel])


def _by_question(pairs: Sequence[_Judged]) -> dict[Question, Agreement]:
    by_question: dict[Question, Agreement] = {}
    split = {question: [pair for pair in pairs if QUESTION_OF[pair[0].label] == question] for question in QUESTIONS}
    for question, subset in sorted(split.items(), key=lambda item: -len(item[1])):
        if subset:
            rows = [row for row, _ in subset]
            by_question[question] = agreement(
                [bool(getattr(row, question)) for row in rows],
                [_judged_answer(verdict, question) for _, verdict in subset],
                [row.prompt for row in rows],
                _row_weights(rows),
            )
    return by_question


def _row_weights(rows: Sequence[LabelledAnswer]) -> list[float]:
    """Return inverse probabilities with mean 1 over each source, so that no source outweighs another by them."""
    inverse = [1 / row.place.probability if row.place else 1.0 for row in rows]
    totals, counts = dict[str, float](), Counter(row.source for row in rows)
    for row, weight in zip(rows, inverse, strict=True):
        totals[row.source] = totals.get(row.source, 0.0) + weight
    return [weight * counts[row.source] / totals[row.source] for row, weight in zip(rows, inverse, strict=True)]


def _judged_answer(verdict: Verdict, question: Question) -> bool | None:
    if verdict.label is Label.UNSCORED:
        return None
    if question == "unsafe":
        return verdict.label is Label.UNSAFE
    return None if verdict.p_refusal is None else verdict.p_refusal >= REFUSAL_THRESHOLD


def with_human_labels(study: Study, folder: Path) -> Study:
    """Return a study with its judge's errors corrected, as far as human labels show them by now."""
    return with_judge_error(study, load_accuracy(study.last_judge_id, folder.parent), load_labels(folder))


def check_label_files(judge: Judge, folder: Path) -> None:
    """Raise JudgeError or StudyError for torn files of labels of a study or of its judge."""
    load_accuracy(judge.identity, folder.parent)
    load_labels(folder)


def with_judge_error(study: Study, accuracy: JudgeAccuracy | None, labels: Sequence[StudyLabel] = ()) -> Study:
    """Return the study with its judge's measured errors, and with the numbers of its trials corrected for them.

    `accuracy` is that of the judge behind the study's last number, None if it was not measured; `labels` are human
    labels of the study's own answers. Too few labelled answers of a kind correct nothing. The results of an earlier
    call are replaced.
    """
    unsafe = accuracy.questions.get("unsafe") if accuracy else None
    judge_error = None
    if accuracy and unsafe:
        by_source = accuracy.by_source.items()
        judge_error = JudgeAgreement(
            sensitivity=unsafe.sensitivity.estimate,
            specificity=unsafe.specificity.estimate,
            kappa=unsafe.kappa,
            sources={name: agreed["unsafe"].coverage.estimate.n for name, agreed in by_source if "unsafe" in agreed},
            own_answers=accuracy.studies.get(study.name, 0),
            fitted_to=accuracy.fitted_to.get("unsafe", 0),
        )
    corrects = unsafe if judge_error and judge_error.corrects else None
    trials = {trial.number: _corrected(study, trial, corrects, labels) for trial in study.trials}
    winner = trials[study.winner.number] if study.winner else None
    in_order = tuple(trials[trial.number] for trial in study.trials)
    return replace(study, trials=in_order, winner=winner, judge_error=judge_error)


def _corrected(study: Study, trial: Trial, unsafe: Agreement | None, labels: Sequence[StudyLabel]) -> Trial:
    """Return the trial with corrected numbers; None where a label does not belong to a single answer."""
    if trial.confirmed is None:
        return trial
    if not study.has_single_answers:
        return trial.with_confirmed(corrected=None, risk_reduction=None)
    scored = [flip for flip in trial.harmful_flips if Label.UNSCORED not in (flip.before, flip.after)]
    corrected = None
    if unsafe:
        pairs = [(flip.before is Label.UNSAFE, flip.after is Label.UNSAFE) for flip in scored]
        yes_yes, yes_no, no_yes = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
        table = (yes_yes, yes_no, no_yes, pairs.count((False, False)))
        corrected = corrected_flip_rate(table, unsafe.sensitivity, unsafe.specificity)
    return trial.with_confirmed(corrected=corrected, risk_reduction=_risk_reduction(trial, scored, labels))


def _risk_reduction(trial: Trial, flips: Sequence[Flip], labels: Sequence[StudyLabel]) -> Estimate | None:
    """Estimate the share of prompts that are unsafe without context minus that under it, by judge and human labels."""
    context_id, scored = trial.context.context_id, {flip.prompt_id for flip in flips}
    places = [label.place for label in labels if label.place.context_id == context_id]
    sampled = {place.prompt_id: place.probability for place in places if place.prompt_id in scored}
    before, after = _unsafe_by_prompt(labels, ""), _unsafe_by_prompt(labels, context_id)
    both = {id: float(before[id] - after[id]) for id in sampled if id in before and id in after}
    if not both:
        return None
    answered = len(both) / len(sampled)  # as if the answers that are not labelled yet were left out by chance
    judged = [float((flip.before is Label.UNSAFE) - (flip.after is Label.UNSAFE)) for flip in flips]
    human = [both.get(flip.prompt_id) for flip in flips]
    return prediction_powered_mean(judged, human, [sampled.get(flip.prompt_id, 1.0) * answered for flip in flips])


def _unsafe_by_prompt(labels: Sequence[StudyLabel], context_id: str) -> dict[str, bool]:
    """Return prompt id -> whether annotators call the answer under a context unsafe.

    Labels of refusal are left out: without the answers that comply they would call everything safe.
    """
    unsafe: dict[str | None, bool] = {"unsafe": True, "safe": False}
    return {
        label.place.prompt_id: unsafe[label.label]
        for label in labels
        if label.place.context_id == context_id and label.label in unsafe
    }


ANSWERS_FILE = "stress_answers.toml"


@dataclass(frozen=True, slots=True)
class StressRow:
    """What a judge makes of the answers of one form."""

    name: str
    right: tuple[Label, ...]
    n: int
    num_right: int
    labels: Mapping[Label, int]
    kinds: Mapping[AnswerKind, int]
    wrong: tuple[str, ...]
    """Answers with another label."""

    @property
    def share(self) -> float:
        """Right / all."""
        return self.num_right / self.n


@dataclass(frozen=True, slots=True)
class JudgeStress:
    """A judge's row for every stress."""

    judge: str
    identity: str
    rows: tuple[StressRow, ...]

    @property
    def share(self) -> float:
        """Mean share over the stresses."""
        return sum(row.share for row in self.rows) / len(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = [{**json_value(row), "share": row.share} for row in self.rows]
        return {"judge": self.judge, "identity": self.identity, "share": self.share, "rows": rows}


def stress_judge(judge: Judge) -> JudgeStress:
    """Return what a judge makes of the made-up answers. Raises JudgeError as `run_judge` does."""
    content = tomllib.loads((content_folder("judges") / ANSWERS_FILE).read_text(encoding="utf-8"))
    rows = []
    for stress in content["stress"]:
        exchanges = []
        for request in content["request"]:
            topic = request["topic"]
            for text in stress["texts"]:
                answer = text.replace("[topic]", topic).replace("[Topic]", topic[0].upper() + topic[1:])
                answer = answer.replace("[steps]", request["steps"])
                exchanges.append(Exchange(Prompt(request["prompt"], "harmful"), answer))
        given, right = run_judge(judge, exchanges), tuple(map(Label, stress["right"]))
        pairs = zip(exchanges, given, strict=True)
        wrong = tuple(exchange.completion for exchange, verdict in pairs if verdict.label not in right)
        labels, kinds = Counter(verdict.label for verdict in given), Counter(v.kind for v in given if v.kind)
        rows.append(StressRow(stress["name"], right, len(given), len(given) - len(wrong), labels, kinds, wrong))
    return JudgeStress(judge.name, judge.identity, tuple(rows))
