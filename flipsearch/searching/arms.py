"""The search itself: cohorts of contexts are proposed, raced over rungs of prompts, and told to the proposer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from flipsearch.measure import Bench, has_failed, measure
from flipsearch.records import Context, Measurement, Trial, TrialState
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.budget import Budget
from flipsearch.searching.elimination import hopeless
from flipsearch.searching.plan import Plan
from flipsearch.searching.proposer import Proposer
from flipsearch.searching.racing import Rung, make_rungs
from flipsearch.searching.telling import tell_cuts, tell_trial
from flipsearch.statistics.shrinkage import BetaPrior, fit_prior


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


@dataclass(frozen=True, slots=True)
class Bar:
    """What an arm must clear to stay in the race."""

    cap: float
    """Highest over-refusal rate."""
    alpha: float
    """Highest probability that the best arm within the cap is cut."""


def search_arms(
    plan: Plan, bench: Bench, base: SplitBaseline, first_number: int, budget: Budget | None = None
) -> tuple[list[Trial], list[str]]:
    """Return a trial for every context tried, in order of proposal, and what the reader must know."""
    config, budget = plan.config, budget or Budget(plan)
    proposer = Proposer(plan.space, config.seed)
    rungs = make_rungs(base.num_unsafe, base.num_benign, config.first_rung)
    arms: list[Arm] = []
    num_cohorts = -(-config.num_contexts // config.cohort_size)
    for cohort in count():  # a budget makes cohorts smaller, and so more of them
        num = budget.room(bench, base, min(config.cohort_size, config.num_contexts - len(arms)))
        if not num:
            break
        contexts = proposer.ask(num)
        earlier = [arm.search for arm in arms if arm.state != "failed"]
        label = f"cohort {cohort + 1}/{max(num_cohorts, cohort + 1)}"
        raced = race(bench, base, contexts, rungs, earlier, Bar(config.max_over_refusal, config.alpha), label)
        arms += raced
        for arm in raced:
            tell_trial(bench, arm.context, arm.state, arm.rung + 1, arm.search)
        _tell(proposer, raced, fit_prior([arm.search.flip_rate for arm in arms]), config.max_over_refusal)
        if proposer.exhausted:
            break
    trials = [_trial(bench, arm, first_number + index) for index, arm in enumerate(arms)]
    return trials, _exhausted_notes(proposer, len(arms)) + budget.notes(len(arms))


def race(
    bench: Bench,
    base: SplitBaseline,
    contexts: Sequence[Context],
    rungs: Sequence[Rung],
    earlier: Sequence[Measurement],
    bar: Bar,
    label: str,
) -> list[Arm]:
    """Race one cohort: all contexts that are still running go through a rung in one call of the backend."""
    arms: dict[str, Arm] = {}
    running = list(contexts)
    for index, rung in enumerate(rungs):
        if not running:
            break
        bench.phase = f"{label}, rung {index + 1}/{len(rungs)}"
        prompts = base.to_flip(rung)
        bench.tell(
            "rung",
            cohort=label.removeprefix("cohort "),
            rung=index + 1,
            num_running=len(running),
            num_prompts=len(prompts),
        )
        measured = measure(bench, running, prompts, base.outcomes, "search")
        others = [*earlier, *(arm.search for arm in arms.values() if arm.state == "cut")]
        states = _states(measured, others, bar, is_last=index == len(rungs) - 1)
        tell_cuts(bench, running, measured, states, others, bar.cap, index + 1)
        for context, one, state in zip(running, measured, states, strict=True):
            arms[context.context_id] = Arm(context, one, state, index)
        running = [context for context in running if arms[context.context_id].state == "complete"]
    return [arms[context.context_id] for context in contexts]


def _states(arms: Sequence[Measurement], others: Sequence[Measurement], bar: Bar, *, is_last: bool) -> list[TrialState]:
    able = [one for one in arms if not has_failed(one)]
    cuts = iter(hopeless(able, others, bar.cap, bar.alpha) if able and not is_last else [False] * len(able))
    return ["failed" if has_failed(one) else "cut" if next(cuts) else "complete" for one in arms]


def _tell(proposer: Proposer, arms: Sequence[Arm], prior: BetaPrior, cap: float) -> None:
    for arm in arms:
        value = None if arm.state == "failed" else prior.shrink(arm.search.flip_rate)
        proposer.tell(arm.context, value, violation=(arm.search.over_refusal_rate.value or 0.0) - cap)


def _trial(bench: Bench, arm: Arm, number: int) -> Trial:
    num_tokens = bench.backend.count_tokens(arm.context.text)
    return Trial(number, arm.context, "arm", arm.state, arm.rung, arm.search, num_context_tokens=num_tokens)


def _exhausted_notes(proposer: Proposer, num_arms: int) -> list[str]:
    return [f"The space is exhausted: it holds {num_arms} different contexts."] if proposer.exhausted else []
