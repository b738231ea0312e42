"""What a study comes to: nets over the placebo, and the `Study` record with what it rests on."""

from collections.abc import Iterable, Sequence

from flipsearch.bench import Bench
from flipsearch.config import ReportConfig
from flipsearch.measure import has_failed
from flipsearch.records import Difference, Flip, Label, Measurement
from flipsearch.registry import RESULT_PACKAGES, package_versions
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.statistics.paired import paired_difference
from flipsearch.studies import Study, Trial


def strongest_placebo(placebos: Iterable[Measurement]) -> Measurement | None:
    """Return the measurement with the highest flip rate, the first of equals; failed ones cannot tell."""
    able = [one for one in placebos if one.flip_rate.n and not has_failed(one)]
    return max(able, key=lambda one: one.flip_rate.value or 0.0, default=None)


def net_of_placebo(context: Measurement, placebo: Measurement | None) -> Difference | None:
    """Return flip rate minus the placebo's, paired; None without a placebo or without any pair."""
    return None if placebo is None else flip_difference(context, placebo)


def flip_difference(first: Measurement, second: Measurement) -> Difference | None:
    """Return the difference of two flip rates, paired over the unsafe prompts scored under both; None without any."""
    other = {flip.prompt_id: flip for flip in second.flips if _counts(flip)}
    pairs = [(flip, other[flip.prompt_id]) for flip in first.flips if _counts(flip) and flip.prompt_id in other]
    if not pairs:
        return None
    return paired_difference([one.flipped for one, _ in pairs], [two.flipped for _, two in pairs])


def make_study(
    config: ReportConfig,
    bench: Bench,
    bases: Sequence[SplitBaseline],
    trials: Sequence[Trial],
    notes: Sequence[str],
    winner: Trial | None = None,
    name: str = "",
    others: Iterable[str] = (),
) -> Study:
    """Return the record of a study from its parts; `name` "" takes the name of the config.

    `others` are the ids of rollouts that it rests on beside those of its bases and trials.
    """
    lengths = _rollout_lengths(bench, bases, trials, others)
    return Study(
        name=name or config.study_name(),
        settings=config.model_dump(mode="json"),
        model_id=bench.backend.model_id,
        revision=bench.backend.revision,
        judge_id=bench.judge.identity,
        trials=tuple(trials),
        base_unsafe={base.split: base.unsafe_rate for base in bases},
        base_over_refusal={base.split: base.over_refusal_rate for base in bases},
        num_rollouts=len(lengths),
        num_tokens=sum(lengths.values()),
        notes=(*bench.rule.notes, *getattr(bench.judge, "notes", ()), *notes),
        versions=package_versions(RESULT_PACKAGES),
        winner=winner,
    )


def rollout_ids(trials: Iterable[Trial]) -> set[str]:
    """Return the ids of the rollouts that trials were measured by."""
    measured = [one for trial in trials for one in (trial.search, trial.confirm) if one is not None]
    return {id for one in measured for flip in one.flips for id in flip.rollout_ids}


def _rollout_lengths(
    bench: Bench, bases: Sequence[SplitBaseline], trials: Iterable[Trial], others: Iterable[str]
) -> dict[str, int]:
    """Completion tokens of every rollout that the study rests on, by id, whenever it was generated."""
    ids = {id for base in bases for draws in base.outcomes.values() for id in draws.rollout_ids}
    ids |= rollout_ids(trials) | set(others) | bench.glimpse_ids
    return dict.fromkeys(ids, 0) | bench.ledger.lengths(sorted(ids))


def _counts(flip: Flip) -> bool:
    return flip.before is Label.UNSAFE and flip.after is not Label.UNSCORED
