"""The sealed confirm split: opened once, for the finalists and the placebos.

Finalists and winner are chosen by their search numbers; the confirm split can only veto (over-refusal above the cap,
or too many unscored). A number that had no part in the choice is not inflated by it, so the winner's confirm flip rate
and its net over the placebo are read as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, Measurement, content_id
from flipsearch.core.studies import Trial, TrialState
from flipsearch.measuring.measure import flip_difference, has_failed, measure, net_of_placebo, strongest_placebo
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline, coverage_notes, measure_baseline
from flipsearch.searching.race import is_admissible
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.paired import holm

OPENED = "confirm split opened: "
"""How the ledger's note of an opening starts; the id of what was opened for whom follows."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the sealed split says."""

    base: SplitBaseline
    """Its baseline."""
    finalists: tuple[Trial, ...]
    """With their confirm measurements and nets, in search order."""
    placebos: tuple[Trial, ...]
    """Those measured before the search; then, by `with_matched`, those matched to the winner."""
    winner: Trial | None
    """First finalist in search order that the confirm split does not veto."""
    notes: tuple[str, ...]
    """What the reader must know."""
    matched: tuple[tuple[Context, Measurement], ...] = ()
    """Placebos matched to the winner, with what the sealed split says, that the search split has still to see."""


def rank(arms: Sequence[Trial]) -> list[Trial]:
    """Return trials by search flip rate; ties: less over-refusal, then fewer tokens, then the earlier one."""
    return sorted(arms, key=_search_order)


def choose_finalists(arms: Sequence[Trial], cap: float, num: int) -> list[Trial]:
    """Return the best complete arms under the over-refusal cap, in search order."""
    fit = [arm for arm in arms if arm.state == "complete" and is_admissible(arm.search, cap)]
    return rank(fit)[:num]


def measure_placebo(runner: Runner, context: Context, base: SplitBaseline, number: int) -> Trial:
    """Measure a placebo on the search split."""
    runner.enter(Phase.PLACEBO, context.template)
    measurement = measure(runner, [context], base.to_flip(), base.outcomes, "search")[0]
    state: TrialState = "failed" if has_failed(measurement) else "complete"
    num_tokens = runner.backend.count_tokens(context.text)
    return Trial(number, context, "placebo", state, 0, measurement, num_context_tokens=num_tokens)


def confirm(
    plan: SearchSetup, runner: Runner, base: SplitBaseline, finalists: Sequence[Trial], placebos: Sequence[Trial]
) -> Confirmation:
    """Open the sealed split for at least one finalist; `base` is the search split's baseline.

    `bench` holds the judge that decides here. The opening is noted in the ledger before the first sealed prompt is
    asked.
    """
    notes = _open(plan, runner, finalists)
    sealed = measure_baseline(runner, plan.confirm, "confirm")
    runner.enter(Phase.FINALISTS)
    measured = _with_confirm(finalists, _measured(runner, sealed, [trial.context for trial in finalists]))
    winner = next((trial for trial in measured if may_win(trial, plan.config.max_over_refusal)), None)
    target = (winner or measured[0]).context
    runner.enter(Phase.PLACEBO)
    contexts = [trial.context for trial in placebos]
    contexts += [row.context(target) for row in plan.placebos if row.needs_winner]
    rows = list(zip(contexts, _measured(runner, sealed, contexts), strict=True))
    strongest = strongest_placebo(one for _, one in rows)
    final = [trial.with_confirm(_of(trial), net_of_placebo(_of(trial), strongest)) for trial in measured]
    final = _behind(final, winner, plan.config.max_over_refusal) if winner else final
    winner = winner and next(trial for trial in final if trial.number == winner.number)
    notes += _refusal_notes(base, sealed)
    notes += coverage_notes(runner, sealed) + _placebo_notes(plan, target, rows) + _winner_notes(final, winner)
    known, matched = rows[: len(placebos)], rows[len(placebos) :]
    told = _with_confirm(placebos, [one for _, one in known])
    return Confirmation(sealed, tuple(final), tuple(told), winner, tuple(notes), tuple(matched))


def with_matched(runner: Runner, base: SplitBaseline, sealed: Confirmation, number: int) -> Confirmation:
    """Return a confirmation whose matched placebos are measured on the search split too, by the judge that searched.

    After all that the deciding judge is asked: two guards may not fit into memory together. `number` is the first free
    trial number.
    """
    searched = [measure_placebo(runner, context, base, number + i) for i, (context, _) in enumerate(sealed.matched)]
    trials = _with_confirm(searched, [one for _, one in sealed.matched])
    return replace(sealed, placebos=(*sealed.placebos, *trials), matched=())


def _open(plan: SearchSetup, runner: Runner, finalists: Sequence[Trial]) -> list[str]:
    """Note the opening, and tell of other openings of the same prompts for the same model."""
    sealed = content_id(runner.backend.model_id, sorted(prompt.prompt_id for prompt in plan.confirm))
    ids = [trial.context.context_id for trial in finalists]
    runner.ledger.note(f"{OPENED}{sealed}/{content_id(sorted(ids))}", json.dumps({"finalists": ids}))
    num_openings = sum(key.startswith(OPENED + sealed) for key in runner.ledger.notes())
    if num_openings == 1:
        return []
    return [
        f"The confirm split has been opened {num_openings} times, for different finalists: "
        "a choice between these openings is no longer unseen."
    ]


def _measured(runner: Runner, sealed: SplitBaseline, contexts: Sequence[Context]) -> list[Measurement]:
    """All contexts on all sealed prompts in one call, the base-safe ones too: tfr needs them."""
    return measure(runner, contexts, sealed.prompts, sealed.outcomes, "confirm")


def _with_confirm(trials: Sequence[Trial], measured: Sequence[Measurement]) -> list[Trial]:
    return [trial.with_confirm(one, None) for trial, one in zip(trials, measured, strict=True)]


def _behind(finalists: Sequence[Trial], winner: Trial, cap: float) -> list[Trial]:
    """The finalists, those that could have won too compared with the winner."""
    rivals = [trial for trial in finalists if trial.number != winner.number and may_win(trial, cap)]
    found = {trial.number: flip_difference(_of(winner), _of(trial)) for trial in rivals}
    told = {number: one for number, one in found.items() if one is not None}
    adjusted = dict(zip(told, holm([one.p_value for one in told.values()]), strict=True))
    behind = {number: replace(one, p_value=adjusted[number]) for number, one in told.items()}
    return [replace(trial, behind=behind.get(trial.number)) for trial in finalists]


def may_win(trial: Trial, cap: float) -> bool:
    """Return whether the confirm split does not veto a confirmed finalist."""
    return is_admissible(_of(trial), cap) and not has_failed(_of(trial))


def _refusal_notes(base: SplitBaseline, sealed: SplitBaseline) -> list[str]:
    """What a confirm judge leaves untold that the search judge told."""
    if base.over_refusal_rate.n and sealed.num_benign and not sealed.over_refusal_rate.n:
        return ["The judge of the confirm split tells no refusals of benign prompts: there the cap vetoes nothing."]
    return []


def _placebo_notes(plan: SearchSetup, target: Context, rows: Sequence[tuple[Context, Measurement]]) -> list[str]:
    notes = [note for row in plan.placebos if (note := row.note(target))]
    failed = [context.template for context, one in rows if has_failed(one)]
    return notes + [f"Placebo {name} failed on the confirm split: too many unscored answers." for name in failed]


def _winner_notes(finalists: Sequence[Trial], winner: Trial | None) -> list[str]:
    if winner is None:
        return [f"No winner: the confirm split vetoes all {len(finalists)} finalists (over-refusal cap, or unscored)."]
    vetoed = [trial for trial in finalists if _search_order(trial) < _search_order(winner)]
    notes = [f"{len(vetoed)} finalists before the winner were vetoed by the confirm split."] if vetoed else []
    if winner.net is None:
        return [*notes, "The winner could not be compared with a placebo: too few unsafe confirm prompts are scored."]
    if winner.net.low <= 0:
        span = f"{winner.net.value:+.3f} [{winner.net.low:+.3f}, {winner.net.high:+.3f}]"
        notes.append(f"The winner does not beat the strongest placebo: net flip rate {span}.")
    return notes


def _search_order(trial: Trial) -> tuple[float, float, int, int]:
    flip_rate, refusals = trial.search.flip_rate.value, trial.search.over_refusal_rate.value
    return -(flip_rate or 0.0), refusals or 0.0, trial.num_context_tokens or 0, trial.number


def _of(trial: Trial) -> Measurement:
    assert trial.confirm is not None
    return trial.confirm
