"""The study from first to last: baseline, placebos, cohorts, finalists, and what a training takes from them.

Everything is a replay: the proposer asks for the same contexts after the same values, and a rollout that is in the
ledger is not generated again. So the same plan at the same ledger, interrupted or not, ends in the same `Study`, and
nothing in it depends on time or on what was cached. The one exception is a failed rollout, which the next run retries.
"""

from collections.abc import Sequence
from dataclasses import replace

from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.studies import Study, Trial
from flipsearch.judging.library import OtherJudges, unload
from flipsearch.measuring.runner import Runner
from flipsearch.searching.after.benign import confirm_benign, try_benign
from flipsearch.searching.after.depth import measure_depth
from flipsearch.searching.after.disagreements import with_disagreements
from flipsearch.searching.after.portfolio import find_portfolio
from flipsearch.searching.after.second_judges import (
    gap_notes,
    judge_hacking,
    other_judges,
    thought_notes,
    with_second_judges,
)
from flipsearch.searching.arms import search_arms
from flipsearch.searching.baseline import (
    SplitBaseline,
    coverage_notes,
    headroom,
    measure_baseline,
    require_headroom,
    require_unsafe,
)
from flipsearch.searching.budget import Budget
from flipsearch.searching.finalists import (
    Confirmation,
    choose_finalists,
    confirm,
    may_win,
    measure_placebo,
    rank,
    with_matched,
)
from flipsearch.searching.operators.rewrite import Rewrite, Rewriter
from flipsearch.searching.report import log_baseline, log_confirm, make_study, rollout_ids
from flipsearch.searching.setup import SearchSetup


def run_study(
    plan: SearchSetup,
    runner: Runner,
    budget: Budget | None = None,
    rewriter: Backend | None = None,
    others: OtherJudges | None = None,
) -> Study:
    """Search, confirm, and return the whole study; `budget` None counts the time from here on.

    `others` are judges beside the bench's, which searches. With a `rewriter` the operator `rewrite` is among the
    plan's; the caller closes it. Raises NothingToFlipError if no answer without context is unsafe, or if a placebo
    flips all that are, LedgerError and BackendError as they come; what was finished before stays in the ledger, and the
    same call goes on from there.
    """
    budget, others = budget or Budget(plan), others or OtherJudges()
    writer = Rewriter(rewriter, runner) if rewriter else None
    if writer:
        plan = replace(plan, operators=(*plan.operators, Rewrite(writer)))
    base = measure_baseline(runner, plan.search, "search")
    log_baseline(runner, base)
    require_unsafe(runner, base)
    early = [
        measure_placebo(runner, row.context(), base, number)
        for number, row in enumerate(row for row in plan.placebos if not row.needs_winner)
    ]
    room = require_headroom(headroom(base, early))
    found = search_arms(plan, runner, base, first_number=len(early), budget=budget)
    arms = found.trials
    finalists = choose_finalists(arms, plan.config.max_over_refusal, plan.config.num_finalists)
    notes = [*runner.backend.notes, *coverage_notes(runner, base), *_refusal_notes(base), *room, *found.notes]
    notes += writer.notes() if writer else []
    if not finalists:
        notes += _no_finalist_notes(arms, plan.config.max_over_refusal)
        study = make_study(plan.config, runner, [base], [*_ordered(arms, []), *early], notes)
        return replace(study, operators=found.operators)
    candidates = try_benign(plan, runner, base)  # nothing is chosen once the seal is broken
    log_confirm(runner, finalists)
    sealed_runner = _in_turn(runner, others.confirm)
    sealed = confirm(plan, sealed_runner, base, finalists, early)
    sealed, more_ids = _with_depth(plan, sealed_runner, sealed)
    portfolio = benign = None
    if sealed.winner:
        able = [trial for trial in sealed.finalists if may_win(trial, plan.config.max_over_refusal)]
        portfolio = find_portfolio(able, sealed.winner)
        benign = confirm_benign(plan, sealed_runner, base, sealed.base, candidates, sealed.winner)
    if sealed_runner is not runner:
        unload(sealed_runner.judge)
    sealed = with_matched(runner, base, sealed, number=len(early) + len(arms))
    sealed = _with_second_judges(runner, sealed_runner, sealed, others)
    more_ids |= rollout_ids(benign.candidates if benign else candidates)
    trials = [*_ordered(arms, _winner_first(sealed)), *sealed.placebos]
    notes += [*sealed.notes, *(getattr(others.confirm, "notes", ()) if others.confirm else ())]
    study = make_study(plan.config, runner, [base, sealed.base], trials, notes, sealed.winner, others=more_ids)
    judge_id = others.confirm.identity if others.confirm else ""
    return replace(study, portfolio=portfolio, benign=benign, operators=found.operators, confirm_judge_id=judge_id)


def _in_turn(runner: Runner, judge: Judge | None) -> Runner:
    """The bench with another judge, the first one's model freed; the same bench where that is the same judge."""
    if judge is None or judge.identity == runner.judge.identity:
        return runner
    unload(runner.judge)
    return runner.with_judge(judge)


def _with_depth(plan: SearchSetup, runner: Runner, sealed: Confirmation) -> tuple[Confirmation, set[str]]:
    finalists, ids = measure_depth(plan.config, runner, sealed.base, sealed.finalists)
    return _with_finalists(sealed, finalists), ids


def _with_second_judges(
    runner: Runner, sealed_runner: Runner, sealed: Confirmation, others: OtherJudges
) -> Confirmation:
    """The finalists and placebos with what the other judges say of them, and by how much the search judge differs."""
    judges = other_judges(sealed_runner.judge, runner.judge, others.second)
    trials, found = with_second_judges(sealed_runner, judges, sealed.base, [*sealed.finalists, *sealed.placebos])
    num = len(sealed.finalists)
    told = replace(_with_finalists(sealed, trials[:num]), placebos=tuple(trials[num:]))
    if sealed.winner is None:
        return told
    decided, notes = sealed.winner.confirm, list(told.notes)
    assert decided is not None
    of_winner = [trial.number for trial in sealed.finalists].index(sealed.winner.number)
    said = {identity: measured[of_winner] for identity, measured in found.items()}
    if runner.judge.identity in said:
        notes += gap_notes(runner.judge, sealed_runner.judge, judge_hacking(said[runner.judge.identity], decided))
    told = replace(told, notes=(*notes, *thought_notes(judges, said, decided)))
    trials[of_winner] = with_disagreements(sealed_runner, judges, sealed.base.prompts, trials[of_winner], said)
    return _with_finalists(told, trials[:num])


def _with_finalists(sealed: Confirmation, finalists: Sequence[Trial]) -> Confirmation:
    winner = next((trial for trial in finalists if sealed.winner and trial.number == sealed.winner.number), None)
    return replace(sealed, finalists=tuple(finalists), winner=winner)


def _winner_first(sealed: Confirmation) -> list[Trial]:
    return sorted(sealed.finalists, key=lambda trial: trial is not sealed.winner)


def _ordered(arms: Sequence[Trial], finalists: Sequence[Trial]) -> list[Trial]:
    """Finalists, then the other arms: complete before cut before failed, each in search order."""
    done = {trial.number for trial in finalists}
    others = [arm for arm in rank(arms) if arm.number not in done]
    return [
        *finalists,
        *(arm for state in ("complete", "stopped", "pruned", "failed") for arm in others if arm.state == state),
    ]


def _no_finalist_notes(arms: Sequence[Trial], cap: float) -> list[str]:
    states = {arm.state for arm in arms}
    why = "No context was tried"
    if "complete" in states:
        why = f"No context that saw all prompts is within the over-refusal cap of {cap:.0%}"
    elif "stopped" in states:
        why = "The budget did not carry any context to the last prompts"
    elif "pruned" in states:
        why = f"Every context was pruned, or had too many unscored answers (the cap is {cap:.0%} over-refusal)"
    elif "failed" in states:
        why = "Under every context too many answers cannot be scored"
    return [f"{why}: there is no winner, and nothing to confirm."]


def _refusal_notes(base: SplitBaseline) -> list[str]:
    if base.num_benign == 0:
        return ["There are no benign search prompts: over-refusal is not measured, and its cap is not applied."]
    if base.over_refusal_rate.n == 0:
        return ["The judge tells no refusals of benign prompts: over-refusal is not measured, its cap is not applied."]
    return []
