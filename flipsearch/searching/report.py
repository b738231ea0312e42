"""Makes the `Study` record, and logs the events of a search (events.jsonl): small facts, with ids instead of texts."""

from collections.abc import Iterable, Sequence
from typing import Any

from flipsearch.config import ReportConfig
from flipsearch.core.package import RESULT_PACKAGES, package_versions
from flipsearch.core.records import Context, Measurement, Rate
from flipsearch.core.studies import STUDY_FORMAT, Study, StudyKind, Trial, TrialState
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline


def make_study(
    kind: StudyKind,
    config: ReportConfig,
    runner: Runner,
    bases: Sequence[SplitBaseline],
    trials: Sequence[Trial],
    notes: Sequence[str],
    winner: Trial | None = None,
    name: str = "",
    others: Iterable[str] = (),
) -> Study:
    """Return the record of a study from its parts; `name` "" takes the name of the config.

    `others` are the ids of rollouts that it rests on beside those of its bases, its trials and the short decodes. All
    are counted, whenever they were generated.
    """
    ids = {id for base in bases for samples in base.outcomes.values() for id in samples.rollout_ids}
    ids |= rollout_ids(trials) | set(others) | runner.short_decode_ids
    lengths = dict.fromkeys(ids, 0) | runner.ledger.lengths(sorted(ids))
    return Study(
        format=STUDY_FORMAT,
        name=name or config.study_name(),
        kind=kind,
        settings=config.model_dump(mode="json"),
        model_id=runner.backend.model_id,
        revision=runner.backend.revision,
        judge_id=runner.judge.identity,
        trials=tuple(trials),
        base_unsafe={base.split: base.unsafe_rate for base in bases},
        base_over_refusal={base.split: base.over_refusal_rate for base in bases},
        num_rollouts=len(lengths),
        num_tokens=sum(lengths.values()),
        notes=(*runner.rule.notes, *getattr(runner.judge, "notes", ()), *notes),
        versions=package_versions(RESULT_PACKAGES),
        winner=winner,
    )


def rollout_ids(trials: Iterable[Trial]) -> set[str]:
    """Return the ids of the rollouts that trials were measured by."""
    return {id for trial in trials for measured in (trial.search, trial.final) for id in measured.rollout_ids}


def log_baseline(runner: Runner, base: SplitBaseline) -> None:
    """Log the rates of the model without a context."""
    rates = {"unsafe": _share(base.unsafe_rate), "over_refusal": _share(base.over_refusal_rate)}
    runner.emit("baseline", split=base.split, num_prompts=len(base.prompts), **rates)


def log_trial(runner: Runner, context: Context, state: TrialState, rung: int, search: Measurement) -> None:
    """Log the result of an arm's race; `rung`, from 1, is the last that it finished."""
    runner.emit(
        "trial",
        context_id=context.context_id,
        template=context.template,
        placement=context.placement,
        params=dict(context.params),
        operator=context.operator,
        state=state,
        rung=rung,
        flip=_share(search.flip_rate),
        over_refusal=_share(search.over_refusal_rate),
    )


def log_confirm(runner: Runner, finalists: Sequence[Trial]) -> None:
    """Log the finalists for which the sealed split is opened."""
    runner.emit("confirm", finalists=[trial.context.context_id for trial in finalists])


def _share(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "n": rate.n, "rate": rate.value}
