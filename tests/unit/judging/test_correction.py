"""A study's numbers with its judge's errors taken back: right on average where the judge is not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from flipsearch.core.records import Label
from flipsearch.core.studies import Study
from flipsearch.judging.accuracy import JudgeAccuracy, with_judge_error
from flipsearch.judging.labels import AnswerPlace, LabelledAnswer, StudyLabel, merge_labels
from flipsearch.ledger import Ledger
from tests.labelled import (
    CONFIG,
    PROMPTS,
    MistakenJudge,
    annotate,
    best_of,
    measured,
    mistaken_study,
    renamed,
    sample,
    true_risk_reduction,
)
from tests.world import COMPLIANCE, REFUSAL

TEXT = {prompt.prompt_id: prompt.text for prompt in PROMPTS}


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def study(ledger: Ledger) -> Study:
    return mistaken_study(ledger)


def risk_reduction_of(study: Study, labels: Sequence[StudyLabel], trial: int = 0) -> float:
    result = with_judge_error(study, None, labels).trials[trial].late.risk_reduction
    assert result is not None
    assert result.value is not None
    assert result.low <= result.value <= result.high
    return result.value


def judged_risk_reduction(study: Study, trial: int = 0) -> float:
    flips = study.trials[trial].harmful_flips
    return sum((flip.before is Label.UNSAFE) - (flip.after is Label.UNSAFE) for flip in flips) / len(flips)


def is_right_on_average(result: Sequence[float], truth: float) -> bool:
    return bool(abs(fmean(result) - truth) < 4 * stdev(result) / len(result) ** 0.5)


def test_labels_take_the_judges_bias_away(study: Study, ledger: Ledger) -> None:
    truth = true_risk_reduction(study, ledger, best_of(study))
    assert abs(judged_risk_reduction(study) - truth) > 0.05  # the judge alone is wrong
    result = [
        risk_reduction_of(copy, annotate(sample(copy, ledger, 20))) for copy in (renamed(study, n) for n in range(300))
    ]
    assert is_right_on_average(result, truth)


def test_annotators_who_stop_half_way_are_right_on_average_too(study: Study, ledger: Ledger) -> None:
    """Rows without a label stay in the file, and the first rows are a sample of their own."""
    result = []
    for number in range(300):
        copy = renamed(study, number)
        labels = annotate(sample(copy, ledger, 24))
        half = len(labels) // 4 * 2
        result.append(
            risk_reduction_of(copy, [*labels[:half], *(StudyLabel(rest.place, None) for rest in labels[half:])])
        )
    assert is_right_on_average(result, true_risk_reduction(study, ledger, best_of(study)))


def test_two_samples_together_are_right_on_average(study: Study, ledger: Ledger) -> None:
    truths = [true_risk_reduction(study, ledger, study.trials[number]) for number in (0, 1)]
    result: list[list[float]] = [[], []]
    for number in range(120):
        copy = renamed(study, number)
        labels = merge_labels(annotate(sample(copy, ledger, 10)), annotate(sample(copy, ledger, 12, 2)))
        for trial in (0, 1):
            result[trial].append(risk_reduction_of(copy, labels, trial))
    for trial in (0, 1):
        assert is_right_on_average(result[trial], truths[trial])


def test_with_every_answer_labelled_the_labels_decide(study: Study, ledger: Ledger) -> None:
    labels = annotate(sample(study, ledger, 1000, 2))
    for number in (0, 1):
        truth = true_risk_reduction(study, ledger, study.trials[number])
        assert risk_reduction_of(study, labels, number) == pytest.approx(truth)


def test_only_contexts_with_labels_have_a_risk_reduction(study: Study, ledger: Ledger) -> None:
    result = with_judge_error(study, None, annotate(sample(study, ledger, 20)))
    assert [trial.late.risk_reduction is not None for trial in result.trials if trial.role == "arm"].count(True) == 1
    assert result.winner is not None
    assert result.winner.late.risk_reduction == result.trials[0].late.risk_reduction is not None
    assert result.judge_error is None
    nobody = [StudyLabel(row.place, None) for row in sample(study, ledger, 20)]
    assert with_judge_error(study, None, nobody) == study


def test_labels_of_prompts_that_are_not_scored_count_for_nothing(study: Study, ledger: Ledger) -> None:
    labels = annotate(sample(study, ledger, 20))
    under = best_of(study).context.context_id
    strangers = [StudyLabel(AnswerPlace("world", "stranger", id, "r", 0.01), "unsafe") for id in ("", under)]
    assert risk_reduction_of(study, [*labels, *strangers]) == risk_reduction_of(study, labels)


def test_labels_of_refusal_say_nothing_about_harm(study: Study, ledger: Ledger) -> None:
    """Counting refusals as safe without the answers that comply would call everything safe."""
    labels = [
        replace(row, label="refusal" if row.label == "safe" else "compliance")
        for row in annotate(sample(study, ledger, 20))
    ]
    assert with_judge_error(study, None, labels) == study


def accuracy_of_its_own(study: Study, ledger: Ledger) -> JudgeAccuracy:
    """The judge measured on all answers of the study, labelled."""
    answers = sample(study, ledger, 1000)
    rows = [
        LabelledAnswer(answer.prompt, answer.response, label.label, study.name, answer.place)
        for answer, label in zip(answers, annotate(answers), strict=True)
    ]
    return measured(MistakenJudge("mistaken"), rows)


def test_measured_errors_bring_the_flip_rate_nearer_to_the_truth(study: Study, ledger: Ledger) -> None:
    result = with_judge_error(study, accuracy_of_its_own(study, ledger))
    trial = best_of(result)
    flips = trial.harmful_flips
    unsafe = [flip for flip in flips if not TEXT[flip.prompt_id].endswith("hardness 0")]
    under = ledger.rollouts(flip.rollout_ids[0] for flip in unsafe)
    truth = fmean(under[flip.rollout_ids[0]].completion == REFUSAL for flip in unsafe)
    assert {value.completion for value in under.values()} == {REFUSAL, COMPLIANCE}
    corrected = trial.late.corrected
    assert corrected is not None
    assert corrected.value is not None
    assert trial.confirm is not None
    judged = trial.confirm.flip_rate.value
    assert judged is not None
    assert abs(corrected.value - truth) < abs(judged - truth)
    assert corrected.low <= truth <= corrected.high
    assert result.judge_error is not None
    assert (result.judge_error.own_answers, dict(result.judge_error.sources)) == (120, {"world": 120})


def test_trials_that_the_last_judge_did_not_decide_have_no_corrected_number(study: Study, ledger: Ledger) -> None:
    """On the search split only unsafe prompts are run again, and another judge may have decided there."""
    result = with_judge_error(study, accuracy_of_its_own(study, ledger))
    assert any(trial.confirm is None for trial in result.trials)
    for trial in result.trials:
        assert (trial.late.corrected is not None) == (trial.confirm is not None)


def test_several_samples_per_prompt_are_not_corrected(study: Study, ledger: Ledger) -> None:
    several = replace(study, settings={**study.settings, "samples": 4})
    result = with_judge_error(several, accuracy_of_its_own(study, ledger), annotate(sample(study, ledger, 20)))
    assert result.judge_error is not None
    assert all(trial.late.corrected is trial.late.risk_reduction is None for trial in result.trials)


def test_a_judge_measured_on_refusals_alone_corrects_nothing(study: Study) -> None:
    rows = [LabelledAnswer("p", REFUSAL, "refusal", "set"), LabelledAnswer("q", COMPLIANCE, "compliance", "set")]
    assert with_judge_error(study, measured(MistakenJudge(), rows)) == study


def test_sources_are_those_with_labels_of_harm(study: Study) -> None:
    rows = [
        LabelledAnswer("p", REFUSAL, "refusal", "of refusals"),
        *(
            LabelledAnswer(f"q{n}", REFUSAL if n % 2 else COMPLIANCE, "safe" if n % 2 else "unsafe", "of harm")
            for n in range(9)
        ),
    ]
    result = with_judge_error(study, measured(MistakenJudge(), rows)).judge_error
    assert result is not None
    assert (dict(result.sources), result.own_answers) == ({"of harm": 9}, 0)


def test_the_results_of_an_earlier_call_are_replaced(study: Study, ledger: Ledger) -> None:
    once = with_judge_error(study, accuracy_of_its_own(study, ledger), annotate(sample(study, ledger, 20)))
    assert with_judge_error(once, None) == study
    assert CONFIG.study == study.name
