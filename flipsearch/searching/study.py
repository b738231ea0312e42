"""Runs a whole search: baseline, placebos, arms, finalists, and the stages after the search.

Everything is a replay: the proposer proposes the same contexts given the same values, and a rollout that is in the
ledger is not generated again. So the same setup at the same ledger, interrupted or not, ends in the same `Study`, and
nothing in it depends on time or on what was cached. The one exception is a failed rollout, which the next run retries.
"""

from collections.abc import Sequence
from dataclasses import replace

from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.studies import Study, StudyKind, Trial
from flipsearch.judging.library import OtherJudges, unload
from flipsearch.measuring.runner import Runner
from flipsearch.searching import after
from flipsearch.searching.after.second_judges import other_judges
from flipsearch.searching.after.stage import CompletedSearch
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
from flipsearch.searching.finalists import choose_finalists, confirm, measure_placebo, search_order
from flipsearch.searching.operators.rewrite import Rewrite, Rewriter
from flipsearch.searching.report import log_baseline, log_confirm, make_study, rollout_ids
from flipsearch.searching.setup import SearchSetup


def run_study(
    setup: SearchSetup,
    runner: Runner,
    budget: Budget | None = None,
    rewriter: Backend | None = None,
    others: OtherJudges | None = None,
) -> Study:
    """Search, confirm, and return the whole study; `budget` None counts the time from here on.

    `others` are judges beside the runner's, which searches. With a `rewriter` the operator `rewrite` is among the
    setup's; the caller closes it. Raises NothingToFlipError if no answer without context is unsafe, or if a placebo
    flips all that are, and LedgerError and BackendError as they come; what was finished before is in the ledger, and
    the same call continues from there.
    """
    budget, others = budget or Budget(setup), others or OtherJudges()
    writer = Rewriter(rewriter, runner) if rewriter else None
    if writer:
        setup = replace(setup, operators=(*setup.operators, Rewrite(writer)))
    base = measure_baseline(runner, setup.search, "search")
    log_baseline(runner, base)
    require_unsafe(runner, base)
    rows = [row for row in setup.placebos if not row.needs_winner]
    placebos = [measure_placebo(runner, row.context(), base, number) for number, row in enumerate(rows)]
    headroom_notes = require_headroom(headroom(base, placebos))
    searched = search_arms(setup, runner, base, first_number=len(placebos), budget=budget)
    arms, cap = searched.trials, setup.config.max_over_refusal
    notes = [*runner.backend.notes, *coverage_notes(runner, base), *_refusal_notes(base), *headroom_notes]
    notes += [*searched.notes, *(writer.notes() if writer else [])]
    finalists = choose_finalists(arms, cap, setup.config.num_finalists)
    if finalists:
        search = _completed(setup, runner, base, len(placebos) + len(arms), others)
        study = _confirmed_study(search, arms, finalists, placebos, notes, others.confirm)
    else:
        trials = [*_ordered(arms, []), *placebos]
        notes += _no_finalist_notes(arms, cap)
        study = make_study(StudyKind.SEARCH, setup.config, runner, [base], trials, notes)
    return replace(study, operators=searched.operators)


def _completed(
    setup: SearchSetup, runner: Runner, base: SplitBaseline, num_trials: int, others: OtherJudges
) -> CompletedSearch:
    """Let the stages measure what they choose from, then hand over to the judge of the confirm split."""
    prepared = {stage.name: stage.prepare(setup, runner, base) for stage in after.STAGES}
    deciding, confirm_judge = runner, others.confirm
    if confirm_judge is not None and confirm_judge.identity != runner.judge.identity:
        unload(runner.judge)
        deciding = runner.with_judge(confirm_judge)
    second = other_judges(deciding.judge, runner.judge, others.second)
    return CompletedSearch(setup, runner, deciding, second, base, num_trials, prepared)


def _confirmed_study(
    search: CompletedSearch,
    arms: Sequence[Trial],
    finalists: Sequence[Trial],
    placebos: Sequence[Trial],
    notes: Sequence[str],
    confirm_judge: Judge | None,
) -> Study:
    """Open the sealed split, run the stages after the search, and return the study."""
    log_confirm(search.runner, finalists)
    confirmation = confirm(search.setup, search.deciding, search.base, finalists, placebos)
    for stage in after.STAGES:
        confirmation = stage.run(search, confirmation)
    winner = confirmation.winner
    winner_first = sorted(confirmation.finalists, key=lambda trial: trial is not winner)
    study = make_study(
        StudyKind.SEARCH,
        search.setup.config,
        search.runner,
        [search.base, confirmation.base],
        [*_ordered(arms, winner_first), *confirmation.placebos],
        [*notes, *confirmation.notes, *getattr(confirm_judge, "notes", ())],
        winner,
        others=confirmation.rollout_ids.union(*map(rollout_ids, search.prepared.values())),
    )
    return replace(
        study,
        portfolio=confirmation.portfolio,
        benign=confirmation.benign,
        measures=confirmation.measures,
        confirm_judge_id=confirm_judge.identity if confirm_judge else "",
    )


def _ordered(arms: Sequence[Trial], finalists: Sequence[Trial]) -> list[Trial]:
    """Return the finalists, then the other arms: complete, stopped, pruned, failed, each in search order."""
    numbers, states = {trial.number for trial in finalists}, ("complete", "stopped", "pruned", "failed")
    others = [arm for arm in arms if arm.number not in numbers]
    return [*finalists, *sorted(others, key=lambda arm: (states.index(arm.state), search_order(arm)))]


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
        return [
            "The judge does not detect refusals of benign prompts: over-refusal is not measured, its cap not applied."
        ]
    return []
