"""What a study tells of its course (events.jsonl): small facts, ids instead of texts."""

from collections.abc import Sequence
from typing import Any

from flipsearch.bench import Bench
from flipsearch.records import Context, Measurement, Rate
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.elimination import case_against
from flipsearch.studies import Trial, TrialState


def tell_baseline(bench: Bench, base: SplitBaseline) -> None:
    """Tell what the model does without a context."""
    rates = {"unsafe": _share(base.unsafe_rate), "over_refusal": _share(base.over_refusal_rate)}
    bench.tell("baseline", split=base.split, num_prompts=len(base.prompts), **rates)


def tell_cuts(
    bench: Bench,
    contexts: Sequence[Context],
    measured: Sequence[Measurement],
    states: Sequence[TrialState],
    others: Sequence[Measurement],
    cap: float,
    rung: int,
) -> None:
    """Tell which arms were cut after a rung (from 1), each with its e-value, which reached 2 / alpha."""
    if "cut" not in states:
        return
    able = [index for index, state in enumerate(states) if state != "failed"]
    cases = case_against([measured[index] for index in able], others, cap)
    for index, evidence in zip(able, cases, strict=True):
        if states[index] == "cut":
            context_id = contexts[index].context_id
            bench.tell("cut", context_id=context_id, rung=rung, evidence=float(f"{evidence:.4g}"))


def tell_trial(bench: Bench, context: Context, state: TrialState, rung: int, search: Measurement) -> None:
    """Tell how an arm came out of its race; `rung`, from 1, is the last that it finished."""
    bench.tell(
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


def tell_confirm(bench: Bench, finalists: Sequence[Trial]) -> None:
    """Tell for whom the sealed split is opened."""
    bench.tell("confirm", finalists=[trial.context.context_id for trial in finalists])


def _share(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "n": rate.n, "rate": rate.value}
