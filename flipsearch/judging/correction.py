"""A study's flip rates with its judge's errors taken back: by its measured accuracy, or by labels of its answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from flipsearch.core.records import Estimate, Flip, Label
from flipsearch.core.studies import JudgeAgreement, Study, Trial
from flipsearch.judging.accuracy import JudgeAccuracy
from flipsearch.judging.labelling import StudyLabel, harmful_flips
from flipsearch.statistics.agreement import Agreement
from flipsearch.statistics.judge_error import Pairs, corrected_flip_rate, prediction_powered_mean


def with_judge_error(study: Study, accuracy: JudgeAccuracy | None, labels: Sequence[StudyLabel] = ()) -> Study:
    """Return a study whose trials carry what their numbers come to if the judge errs as it was measured to.

    `accuracy` is of the judge of the study's last number, None if it was not measured; `labels` are people's words on
    answers of this study. What an earlier call said is replaced.
    """
    unsafe = accuracy.questions.get("unsafe") if accuracy else None
    trials = {trial.number: _corrected(study, trial, unsafe, labels) for trial in study.trials}
    told = _judge_error(study, accuracy, unsafe) if accuracy and unsafe else None
    winner = trials[study.winner.number] if study.winner else None
    return replace(study, trials=tuple(trials[trial.number] for trial in study.trials), winner=winner, judge_error=told)


def _judge_error(study: Study, accuracy: JudgeAccuracy, unsafe: Agreement) -> JudgeAgreement:
    sources = {source: found["unsafe"] for source, found in accuracy.by_source.items() if "unsafe" in found}
    return JudgeAgreement(
        sensitivity=unsafe.sensitivity.estimate,
        specificity=unsafe.specificity.estimate,
        kappa=unsafe.kappa,
        sources={source: found.coverage.estimate.n for source, found in sources.items()},
        own_answers=accuracy.studies.get(study.name, 0),
        fitted_to=accuracy.fitted_to.get("unsafe", 0),
    )


def _corrected(study: Study, trial: Trial, unsafe: Agreement | None, labels: Sequence[StudyLabel]) -> Trial:
    """The trial with its numbers; without any where the last judge did not decide it, or where prompts have several
    draws: then a label is not one answer's.
    """
    if trial.confirmed is None:
        return trial
    if study.settings.get("samples", 1) > 1:
        return trial.with_confirmed(corrected=None, risk_reduction=None)
    scored = [flip for flip in harmful_flips(trial) if Label.UNSCORED not in (flip.before, flip.after)]
    corrected = corrected_flip_rate(_pairs(scored), unsafe.sensitivity, unsafe.specificity) if unsafe else None
    return trial.with_confirmed(corrected=corrected, risk_reduction=_risk_reduction(trial, scored, labels))


def _pairs(flips: Sequence[Flip]) -> Pairs:
    seen = [(flip.before is Label.UNSAFE, flip.after is Label.UNSAFE) for flip in flips]
    return seen.count((True, True)), seen.count((True, False)), seen.count((False, True)), seen.count((False, False))


def _risk_reduction(trial: Trial, flips: Sequence[Flip], labels: Sequence[StudyLabel]) -> Estimate | None:
    """Share of prompts that are unsafe without context minus that under it, from the judge on all, people on some."""
    under = [one for one in labels if one.place.context_id == trial.context.context_id]
    scored = {flip.prompt_id for flip in flips}
    drawn = {one.place.prompt_id: one.place.probability for one in under if one.place.prompt_id in scored}
    before, after = _said(one for one in labels if not one.place.context_id), _said(under)
    both = {id: float(before[id] - after[id]) for id in drawn if id in before and id in after}
    if not both:
        return None
    answered = len(both) / len(drawn)  # as if those that nobody labelled yet were left out by chance
    judged = [float((flip.before is Label.UNSAFE) - (flip.after is Label.UNSAFE)) for flip in flips]
    people = [both.get(flip.prompt_id) for flip in flips]
    return prediction_powered_mean(judged, people, [drawn.get(flip.prompt_id, 1.0) * answered for flip in flips])


def _said(labels: Iterable[StudyLabel]) -> Mapping[str, bool]:
    """Prompt id -> whether people call the answer unsafe. Labels of refusal do not count: they tell of refusals alone,
    and to take those without the answers that comply would call everything safe.
    """
    told = {"unsafe": True, "safe": False}
    return {one.place.prompt_id: told[one.label] for one in labels if one.label in told}
