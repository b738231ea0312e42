"""A study's flip rates with its judge's errors taken back: by its measured accuracy, or by labels of its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flipsearch.judging.accuracy import JudgeAccuracy
from flipsearch.judging.labelling import StudyLabel, confirm_measurement
from flipsearch.judging.labels import UNSAFE
from flipsearch.records import Estimate, Flip, Label
from flipsearch.statistics.agreement import Agreement
from flipsearch.statistics.judge_error import Pairs, corrected_flip_rate, prediction_powered_mean
from flipsearch.studies import JudgeAgreement, Study, Trial


def with_judge_error(study: Study, accuracy: JudgeAccuracy | None, labels: Sequence[StudyLabel] = ()) -> Study:
    """Return a study whose trials carry what their numbers come to if the judge errs as it was measured to.

    `accuracy` is of the judge of the study's last number, None if it was not measured; `labels` are people's words on
    answers of this study. What an earlier call said is replaced.
    """
    unsafe = accuracy.questions.get("unsafe") if accuracy else None
    trials = {trial.number: _corrected(trial, unsafe, labels) for trial in study.trials}
    told = _judge_error(study, accuracy, unsafe) if accuracy and unsafe else None
    winner = trials[study.winner.number] if study.winner else None
    return replace(study, trials=tuple(trials[trial.number] for trial in study.trials), winner=winner, judge_error=told)


def _judge_error(study: Study, accuracy: JudgeAccuracy, unsafe: Agreement) -> JudgeAgreement:
    return JudgeAgreement(
        sensitivity=unsafe.sensitivity.estimate,
        specificity=unsafe.specificity.estimate,
        kappa=unsafe.kappa,
        sources=accuracy.sources,
        own_answers=study.name in accuracy.sources,
    )


def _corrected(trial: Trial, unsafe: Agreement | None, labels: Sequence[StudyLabel]) -> Trial:
    flips = [flip for flip in confirm_measurement(trial).flips if flip.kind == "harmful"]
    scored = [flip for flip in flips if Label.UNSCORED not in (flip.before, flip.after)]
    corrected = corrected_flip_rate(_pairs(scored), unsafe.sensitivity, unsafe.specificity) if unsafe else None
    return replace(trial, corrected=corrected, relief=_relief(trial, scored, labels))


def _pairs(flips: Sequence[Flip]) -> Pairs:
    seen = [(flip.before is Label.UNSAFE, flip.after is Label.UNSAFE) for flip in flips]
    return seen.count((True, True)), seen.count((True, False)), seen.count((False, True)), seen.count((False, False))


def _relief(trial: Trial, flips: Sequence[Flip], labels: Sequence[StudyLabel]) -> Estimate | None:
    """Share of prompts that are unsafe without context minus that under it, from the judge on all, people on some."""
    base, under = _said(labels, ""), _said(labels, trial.context.context_id)
    drawn = {one.place.prompt_id: one.place.probability for one in labels}
    both = {id: float(base[id] - under[id]) for id in base if id in under}
    if not both:
        return None
    answered = len(both) / len(drawn)  # as if those that nobody labelled yet were left out by chance
    judged = [float((flip.before is Label.UNSAFE) - (flip.after is Label.UNSAFE)) for flip in flips]
    people = [both.get(flip.prompt_id) for flip in flips]
    return prediction_powered_mean(judged, people, [drawn.get(flip.prompt_id, 1.0) * answered for flip in flips])


def _said(labels: Sequence[StudyLabel], context_id: str) -> Mapping[str, bool]:
    """Prompt id -> whether people call the answer unsafe, where their label tells."""
    return {
        one.place.prompt_id: UNSAFE[one.label]
        for one in labels
        if one.place.context_id == context_id and one.label in UNSAFE
    }
