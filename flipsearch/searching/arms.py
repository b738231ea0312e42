"""The search itself: cohorts of contexts are proposed, raced over rungs of prompts, and told to the proposer."""

from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.measure import Bench, has_failed, measure
from flipsearch.records import Context, Measurement, Trial, TrialState
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.plan import Plan
from flipsearch.searching.proposer import Proposer
from flipsearch.searching.racing import Rung, is_hopeless, make_rungs, pooled_flip_rate, shrunken


@dataclass(frozen=True, slots=True)
class Arm:
    """A context and how far it came."""

    context: Context
    """What was raced."""
    search: Measurement
    """On the prompts that it has seen."""
    state: TrialState
    """"complete" until something stops it."""
    rung: int
    """Last rung it finished."""


def search_arms(plan: Plan, bench: Bench, base: SplitBaseline, first_number: int) -> tuple[list[Trial], list[str]]:
    """Return a trial for every context tried, in order of proposal, and what the reader must know."""
    config = plan.config
    proposer = Proposer(plan.space, config.seed)
    rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
    arms: list[Arm] = []
    num_cohorts = -(-config.num_contexts // config.cohort_size)
    for cohort in range(num_cohorts):
        contexts = proposer.ask(min(config.cohort_size, config.num_contexts - len(arms)))
        elites = [arm.search for arm in arms if arm.state == "complete"]
        label = f"cohort {cohort + 1}/{num_cohorts}"
        raced = race(bench, base, contexts, rungs, elites, config.max_over_refusal, label)
        arms += raced
        _tell(proposer, raced, pooled_flip_rate(arm.search for arm in arms), config.max_over_refusal)
        if proposer.exhausted:
            break
    trials = [_trial(bench, arm, first_number + index) for index, arm in enumerate(arms)]
    return trials, _exhausted_notes(proposer, len(arms))


def race(
    bench: Bench,
    base: SplitBaseline,
    contexts: Sequence[Context],
    rungs: Sequence[Rung],
    elites: Sequence[Measurement],
    cap: float,
    label: str,
) -> list[Arm]:
    """Race one cohort: all contexts that are still running go through a rung in one call of the backend."""
    arms: dict[str, Arm] = {}
    running = list(contexts)
    for index, rung in enumerate(rungs):
        if not running:
            break
        bench.phase = f"{label}, rung {index + 1}/{len(rungs)}"
        measured = measure(bench, running, base.to_flip(rung), base.outcomes, "search")
        rivals = [*elites, *(one for one in measured if not has_failed(one))]
        is_last = index == len(rungs) - 1
        for context, one in zip(running, measured, strict=True):
            arms[context.context_id] = Arm(context, one, _state(one, rivals, cap, is_last), index)
        running = [context for context in running if arms[context.context_id].state == "complete"]
    return [arms[context.context_id] for context in contexts]


def _state(one: Measurement, rivals: Sequence[Measurement], cap: float, is_last: bool) -> TrialState:
    if has_failed(one):
        return "failed"
    return "cut" if not is_last and is_hopeless(one, rivals, cap) else "complete"


def _tell(proposer: Proposer, arms: Sequence[Arm], prior: float, cap: float) -> None:
    for arm in arms:
        value = None if arm.state == "failed" else shrunken(arm.search, prior)
        proposer.tell(arm.context, value, violation=(arm.search.over_refusal_rate.value or 0.0) - cap)


def _trial(bench: Bench, arm: Arm, number: int) -> Trial:
    num_tokens = bench.backend.count_tokens(arm.context.text)
    return Trial(number, arm.context, "arm", arm.state, arm.rung, arm.search, num_context_tokens=num_tokens)


def _exhausted_notes(proposer: Proposer, num_arms: int) -> list[str]:
    return [f"The space is exhausted: it holds {num_arms} different contexts."] if proposer.exhausted else []
