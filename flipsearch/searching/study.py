"""Runs a whole search, or scores given contexts, and returns the `Study`.

    search    baseline, placebos, arms, finalists, stages after the search
    score     baseline, given contexts and the empty placebo on every prompt: no proposals, no pruning

Everything is a replay: the proposer proposes the same contexts given the same values, and a rollout that is in the
ledger is not generated again. So the same setup at the same ledger, interrupted or not, ends in the same `Study`, and
nothing in it depends on time or on what was cached. The one exception is a failed rollout, which the next run retries.

A finished search is also written as an Optuna study, for Optuna's own tools, and never read by flipsearch: the ledger
alone is what a search continues from. A context is a trial at its point of the space; its value is the search flip
rate, its constraint the over-refusal above the cap, and an arm that was pruned or stopped early is PRUNED with its
value so far. Placebos are left out: they were not optimised.

    optuna-dashboard sqlite:///reports/<study>/optuna.db
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import StaticPool

from flipsearch.backends.base import notes_for
from flipsearch.config import ScoreConfig, SearchConfig, StudyConfig
from flipsearch.core.errors import StudyError
from flipsearch.core.files import RESULT_PACKAGES, atomic_write, package_versions
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.records import PLACEMENTS, Context, Prompt
from flipsearch.core.studies import STUDY_FORMAT, RefusalCap, Study, StudyKind, Trial
from flipsearch.judging.library import OtherJudges, unload
from flipsearch.measuring.measure import flip_difference, measure, measured_trial, share_flipped, within_caps
from flipsearch.measuring.runner import SPEED, Runner
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.searching import after
from flipsearch.searching.after.second_judges import with_second_judges
from flipsearch.searching.arms import search_arms
from flipsearch.searching.baseline import (
    SplitBaseline,
    counts,
    coverage_notes,
    ending_notes,
    few_unsafe_notes,
    measure_baseline,
    num_left,
    require_coverage,
    require_headroom,
    require_unsafe,
)
from flipsearch.searching.finalists import (
    CompletedSearch,
    confirm,
    measure_placebo,
    order_notes,
    other_judges,
    search_order,
    search_ties,
)
from flipsearch.searching.operators.rewrite import Rewrite, Rewriter
from flipsearch.searching.plan import Budget
from flipsearch.searching.setup import SearchSetup, Space, without_same_placements

STORAGE_FILE = "optuna.db"
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def run_study(
    setup: SearchSetup,
    runner: Runner,
    budget: Budget | None = None,
    rewriter: Backend | None = None,
    others: OtherJudges | None = None,
    on_rung: Callable[[Callable[[], Study]], None] | None = None,
) -> Study:
    """Search, confirm, and return the whole study; `budget` None counts the time from here on.

    `others` are judges beside the runner's, which searches. With a `rewriter` the operator `rewrite` is among the
    setup's; the caller closes it. `on_rung` is called after each rung with what returns the unfinished study.

    Raises NothingToFlipError if no answer without context is unsafe, or if a placebo flips all that are,
    PoorCoverageError if too few answers can be scored, and LedgerError and BackendError as they come; what was finished
    before is in the ledger, and the same call continues from there.
    """
    budget, others = budget or Budget(setup), others or OtherJudges()
    writer = Rewriter(rewriter, runner) if rewriter else None
    if writer:
        setup = replace(setup, operators=(*setup.operators, Rewrite(writer)))
    setup, same_notes = without_same_placements(setup, getattr(runner.backend, "same_placements", {}))
    start = time.monotonic()
    base = measure_baseline(runner, setup.search, "search")
    if runner.num_generated_tokens:  # for `flipsearch plan`; no result depends on it
        runner.ledger.note(SPEED, f"{runner.num_generated_tokens / (time.monotonic() - start):.2f}")
    rates = {"unsafe": counts(base.unsafe_rate), "over_refusal": counts(base.over_refusal_rate)}
    runner.emit("baseline", split=base.split, num_prompts=len(base.prompts), **rates)
    require_coverage(runner, base)
    require_unsafe(base)
    rows = [row for row in setup.placebos if not row.needs_winner]
    placebos = [measure_placebo(runner, row.context(), base, number) for number, row in enumerate(rows)]
    headroom_notes = require_headroom(base.num_unsafe, num_left(base, placebos))
    backend_notes = notes_for(runner.backend, setup.config.placements or PLACEMENTS)
    notes = [*backend_notes, *same_notes, *coverage_notes(runner, base), *ending_notes(runner, base)]
    notes += [*_refusal_notes(base), *few_unsafe_notes(base, setup.num_finalists), *headroom_notes]

    def rung_done(stage: str, arms: Callable[[], list[Trial]]) -> None:
        def unfinished() -> Study:
            trials = [*_ordered(arms(), []), *placebos]
            study = make_study(StudyKind.SEARCH, setup.config, runner, [base], trials, notes)
            return replace(study, unfinished=stage)

        if on_rung:
            on_rung(unfinished)

    searched = search_arms(setup, runner, base, len(placebos), budget, rung_done)
    arms = searched.trials
    notes += [*searched.notes, *(writer.notes() if writer else [])]
    admissible = [arm for arm in arms if arm.state == "complete" and within_caps(arm.search, setup.config)]
    admissible.sort(key=search_order)
    finalists, notes = admissible[: setup.num_finalists], [*notes, *order_notes(admissible)]
    if finalists:
        study = _confirmed_study(setup, runner, base, arms, finalists, placebos, notes, others)
        if study.winner:
            study = _with_search_ties(study, admissible, study.winner)
    else:
        trials = [*_ordered(arms, []), *placebos]
        notes += _no_finalist_notes(arms, setup.config)
        study = make_study(StudyKind.SEARCH, setup.config, runner, [base], trials, notes)
    return replace(study, operators=searched.operators)


def run_score(
    config: ScoreConfig,
    runner: Runner,
    contexts: Sequence[Context],
    prompts: Sequence[Prompt],
    name: str,
    second: Sequence[Judge] = (),
) -> Study:
    """Return a study of the given contexts on every prompt, by flip rate, failed ones and the empty placebo last.

    The judges `second` have a column each. Raises StudyError without a harmful prompt, NothingToFlipError if no
    answer without context is unsafe, and PoorCoverageError if too few can be scored.
    """
    chosen = first_of_each_kind([p for p in prompts if config.split in (None, p.split)], config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in chosen):
        raise StudyError(f"no harmful prompt in the {config.split or 'given'} prompts (of {len(prompts)}).")
    base = measure_baseline(runner, chosen, config.split or "all")
    require_coverage(runner, base)
    require_unsafe(base)
    runner.enter(Phase.SCORE)
    measured = measure(runner, [*contexts, Context("")], base.prompts, base.outcomes, base.split)
    trials = [
        measured_trial(runner, number, context, "arm", measurement, base.usual_unscored)
        for number, (context, measurement) in enumerate(zip(contexts, measured[:-1], strict=True))
    ]
    trials.append(measured_trial(runner, len(contexts), Context(""), "placebo", measured[-1], base.usual_unscored))
    judges = other_judges(runner.judge, runner.judge, second)
    *arms, placebo = with_second_judges(runner, judges, base, trials)[0]
    arms = [arm.with_confirmed(net=flip_difference(arm.search, placebo.search)) for arm in arms]
    arms.sort(key=lambda arm: (arm.state == "failed", -share_flipped(arm.search)))
    backend_notes = notes_for(runner.backend, {context.placement for context in contexts})
    notes = [*backend_notes, *coverage_notes(runner, base), *ending_notes(runner, base)]
    notes += order_notes([arm for arm in arms if arm.state != "failed"])
    if any(context.template for context in contexts) and config.split is None:
        notes.append("Scored on every prompt: for a context that a search found on these, --split confirm is fairer.")
    return make_study(StudyKind.SCORE, config, runner, [base], [*arms, placebo], notes, name=name)


def make_study(
    kind: StudyKind,
    config: StudyConfig,
    runner: Runner,
    bases: Sequence[SplitBaseline],
    trials: Sequence[Trial],
    notes: Sequence[str],
    winner: Trial | None = None,
    name: str = "",
    others: Iterable[str] = (),
) -> Study:
    """Return the record of a study from its parts; `name` "" takes the name of the config.

    `others` are the ids of rollouts that it rests on beside those of its bases and its trials. All are counted,
    whenever they were generated.
    """
    ids = {id for base in bases for samples in base.outcomes.values() for id in samples.rollout_ids}
    ids |= _rollout_ids(trials) | set(others)
    lengths = dict.fromkeys(ids, 0) | runner.ledger.lengths(sorted(ids))
    if num_filtered := runner.ledger.num_filtered(ids):
        withheld = "were withheld by the endpoint's content filter or refusal field: they are unscored, never safe."
        notes = [*notes, f"{num_filtered:,} of {len(ids):,} answers {withheld}"]
    return Study(
        format=STUDY_FORMAT,
        name=name or config.study_name(),
        kind=kind,
        settings=config.model_dump(mode="json") | {"think_tokens": runner.sampling.think_tokens},
        model_id=runner.backend.model_id,
        revision=runner.backend.revision,
        judge_id=runner.judge.identity,
        trials=tuple(trials),
        prompts=tuple(prompt for base in bases for prompt in base.prompts),
        base_answers=tuple(base.outcomes[p.prompt_id].rollout_ids for base in bases for p in base.prompts),
        base_unsafe={base.split: base.unsafe_rate for base in bases},
        base_over_refusal={base.split: base.over_refusal_rate for base in bases},
        base_endings={base.split: base.endings for base in bases},
        num_rollouts=len(lengths),
        num_tokens=sum(lengths.values()),
        notes=(*runner.rule.notes, *getattr(runner.judge, "notes", ()), *notes),
        versions=package_versions(RESULT_PACKAGES),
        winner=winner,
    )


def _rollout_ids(trials: Iterable[Trial]) -> set[str]:
    """Return the ids of the rollouts that trials were measured by."""
    return {id for trial in trials for measured in (trial.search, trial.final) for id in measured.rollout_ids}


def _confirmed_study(
    setup: SearchSetup,
    runner: Runner,
    base: SplitBaseline,
    arms: Sequence[Trial],
    finalists: Sequence[Trial],
    placebos: Sequence[Trial],
    notes: Sequence[str],
    others: OtherJudges,
) -> Study:
    """Open the sealed split, run the stages after the search, and return the study."""
    # Stages measure what they choose from, before another judge takes over for the confirm split.
    prepared = {stage.name: stage.prepare(setup, runner, base) for stage in after.STAGES}
    deciding = runner
    if others.confirm is not None and others.confirm.identity != runner.judge.identity:
        unload(runner.judge)
        deciding = runner.with_judge(others.confirm)
    second = other_judges(deciding.judge, runner.judge, others.second)
    search = CompletedSearch(setup, runner, deciding, second, base, len(placebos) + len(arms), prepared)
    runner.emit("confirm", finalists=[trial.context.context_id for trial in finalists])
    confirmation = confirm(setup, deciding, base, finalists, placebos)
    for stage in after.STAGES:
        if second or not stage.needs_other_judges:
            confirmation = stage.run(search, confirmation)
    winner = confirmation.winner
    winner_first = sorted(confirmation.finalists, key=lambda trial: trial is not winner)
    study = make_study(
        StudyKind.SEARCH,
        setup.config,
        runner,
        [base, confirmation.base],
        [*_ordered(arms, winner_first), *confirmation.placebos],
        [*notes, *confirmation.notes, *getattr(others.confirm, "notes", ())],
        winner,
        others=confirmation.rollout_ids.union(*map(_rollout_ids, prepared.values())),
    )
    return replace(
        study,
        portfolio=confirmation.portfolio,
        benign=confirmation.benign,
        measures=confirmation.measures,
        confirm_judge_id=others.confirm.identity if others.confirm else "",
    )


def _ordered(arms: Sequence[Trial], finalists: Sequence[Trial]) -> list[Trial]:
    """Return the finalists, then the other arms by state, those that run by how far they came; in search order."""
    numbers, states = {trial.number for trial in finalists}, ("complete", "running", "stopped", "pruned", "failed")
    others = [arm for arm in arms if arm.number not in numbers]

    def place(arm: Trial) -> tuple[object, ...]:
        return states.index(arm.state), -arm.rung if arm.state == "running" else 0, search_order(arm)

    return [*finalists, *sorted(others, key=place)]


def _with_search_ties(study: Study, admissible: Sequence[Trial], winner: Trial) -> Study:
    """Return the study with the contexts that tie with the winner on the search split, and a note of them."""
    ties = search_ties(admissible, winner)
    if not ties:
        return study
    num_level = sum(share_flipped(trial.search) == share_flipped(winner.search) for trial in ties)
    level = (
        f"; between it and {num_level} of them, which flip as many, fewer refusals decided, then fewer tokens"
        if num_level
        else ""
    )
    note = (
        f"On the search prompts, which chose the winner, {len(ties)} of {len(admissible) - 1} other contexts that saw "
        f"all of them within the caps cannot be distinguished from it{level}. The confirm prompts compare it with the "
        "other finalists alone."
    )
    return replace(study, search_ties=tuple(trial.context.context_id for trial in ties), notes=(*study.notes, note))


def _no_finalist_notes(arms: Sequence[Trial], config: SearchConfig) -> list[str]:
    cap, states = config.refusal_cap(), {arm.state for arm in arms}
    why = "No context was tried"
    if "complete" in states:
        caps = f"over-refusal ({cap}) and contraction (at most {config.max_contraction:.0%})"
        why = f"No context that saw all prompts is within the caps on {caps}"
    elif "stopped" in states:
        why = "The budget did not carry any context to the last prompts"
    elif "pruned" in states:
        why = f"Every context was pruned, or had too many unscored answers (the over-refusal cap is {cap})"
    elif "failed" in states:
        why = "Under every context too many answers cannot be scored or are degenerate"
    return [f"{why}: there is no winner, and nothing to confirm."]


def _refusal_notes(base: SplitBaseline) -> list[str]:
    if base.num_benign == 0:
        return ["There are no benign search prompts: over-refusal is not measured, and its cap is not applied."]
    if base.over_refusal_rate.n == 0:
        return [
            "The judge does not detect refusals of benign prompts: over-refusal is not measured, its cap not applied."
        ]
    return []


def write_storage(study: Study, space: Space, folder: Path) -> None:
    """Write optuna.db into the folder of a finished study: to a temporary file, then renamed.

    Raises StudyError if it cannot be written.
    """
    path = folder / STORAGE_FILE
    arms = sorted((trial for trial in study.trials if trial.role == "arm"), key=lambda trial: trial.number)
    cap = study.refusal_cap
    assert cap is not None  # a search has one
    try:
        with atomic_write(path) as partial:
            _write([_optuna_trial(arm, space, cap) for arm in arms], study.name, partial)
    except sqlite3.Error as error:
        raise StudyError(f"cannot write '{path}': {error}; free the disk or choose another folder.") from error


def _write(trials: list[FrozenTrial], name: str, path: Path) -> None:
    """Fill a database in memory and copy it: hundreds of small commits would each wait for the disk."""
    in_memory = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=in_memory)
    try:
        optuna.create_study(storage=storage, study_name=name, direction="maximize").add_trials(trials)
        with closing(storage.engine.raw_connection()) as pooled, closing(sqlite3.connect(path)) as file:
            connection = pooled.driver_connection
            assert isinstance(connection, sqlite3.Connection)
            connection.backup(file)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _optuna_trial(trial: Trial, space: Space, cap: RefusalCap) -> FrozenTrial:
    context, search = trial.context, trial.search
    # A child of operators has no point in the space.
    point = None if context.operator else space.point_of(context)
    state, value = STATES[trial.state], None if trial.state == "failed" else search.flip_rate.value
    if state is TrialState.COMPLETE and value is None:
        state = TrialState.FAIL
    described = {"context_id": context.context_id, "trial": trial.number, "text": context.text}
    lineage = {"operator": context.operator, "parents": list(context.parents)} if context.operator else {}
    measured = {"flip": counts(search.flip_rate), "over_refusal": counts(search.over_refusal_rate)}
    confirmed = {"confirm_flip_rate": trial.confirm.flip_rate.value} if trial.confirm else {}
    # Few attributes with much in each: every one of them takes four statements to the database.
    attributes = {"context": described | lineage, "search": {"rung": trial.rung + 1} | measured | confirmed}
    refused = cap.rate(search).value
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=point or {},
        distributions=dict(space.distributions(point)) if point else {},
        constraints=None if refused is None else {"over_refusal": refused - cap.most},
        user_attrs=attributes,
    )
