"""Opens the sealed confirm split once, for the finalists and the placebos, and defines the stages that come after it.

Finalists and winner are chosen by their search numbers; the confirm split vetoes only what it cannot score. A number
that had no part in the choice is not changed by it, so the winner's confirm flip rate, its net over the placebo and its
over-refusal are unbiased, and their plain intervals hold. To pass on to the next finalist when the winner breaks the
cap here would choose the one that happens to refuse little on these very prompts, and report that as its rate: too low
by 6 to 7 points where all are 5 points above the cap. So a winner above the cap is reported as one, and not confirmed.

The net flip rate is against the strongest of re-roll and neutral texts. A copy of the winner with its words in another
order keeps every safety word: what is left of a difference to it is what word order adds, another question.

A stage after the search (searching.after) knows neither the study it ends up in nor the other stages: it gets a
`Confirmation` and returns it with its own part added.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Difference, Estimate, Measurement, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Judge, Panel
from flipsearch.core.records import Context, content_id
from flipsearch.core.studies import TIE_LEVEL, BenignContext, Portfolio, Trial
from flipsearch.judging.library import unload
from flipsearch.measuring.measure import (
    flip_difference,
    has_failed,
    measure,
    measured_trial,
    share_flipped,
    strongest_placebo,
)
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline, coverage_notes, few_unsafe_notes, measure_baseline
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import holm

UNSEALED = "confirm split opened: "
"""Start of the ledger's note of an unsealing; the ids of the prompts and of the finalists follow."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What was measured since the seal was broken; every stage after the search returns a copy with its own part."""

    base: SplitBaseline
    finalists: tuple[Trial, ...]
    """Confirmed, in search order."""
    placebos: tuple[Trial, ...]
    """Confirmed: those measured before the search, then those matched to the winner."""
    winner_number: int | None
    """Number of the first finalist in search order that the confirm split could score."""
    notes: tuple[str, ...]
    matched: tuple[tuple[Context, Measurement], ...] = ()
    """Placebos matched to the winner with their confirm measurement, until they are measured on the search split."""
    portfolio: Portfolio | None = None
    benign: BenignContext | None = None
    winner_by_judge: Mapping[str, Measurement] = field(default_factory=dict)
    """Identity of a second judge -> the winner's measurement by that judge."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Stage -> its JSON-able result, for stages without a field of their own."""
    rollout_ids: frozenset[str] = frozenset()
    """Rollouts that these numbers rest on, beside those of `base`, the finalists and the placebos."""

    @property
    def winner(self) -> Trial | None:
        """First finalist in search order that the confirm split could score."""
        return next((trial for trial in self.finalists if trial.number == self.winner_number), None)


@dataclass(frozen=True, slots=True)
class CompletedSearch:
    """What stages after the search can use."""

    setup: SearchSetup
    runner: Runner
    """With the judge that searched."""
    deciding: Runner
    """With the judge that decides on the confirm split; the same runner if that is the same judge."""
    other_judges: Sequence[Judge]
    """Judges that do not decide, each once."""
    base: SplitBaseline
    """Of the search split."""
    num_trials: int
    """Trials so far; the next one gets this number."""
    prepared: Mapping[str, Sequence[Trial]]
    """Stage -> the trials that it measured before the seal was broken."""


class Stage(Protocol):
    """A measurement after the search; subclass it to inherit what a stage does not need.

    Judges take turns in memory: only the judge whose turn it is may be used (see `after.STAGES`).
    """

    name: str
    """Unique; the plan shows the cost under it."""
    needs_other_judges: bool = False
    """Whether it is skipped where there are no other judges."""

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int | None:
        """Return the most rollouts that the stage takes, given the search split's baseline, or before it is known.

        None if it generates nothing of its own: then the plan has no row for it.
        """
        return None

    def prepare(self, setup: SearchSetup, runner: Runner, base: SplitBaseline) -> Sequence[Trial]:
        """Return what is measured on the search split before the seal is broken, so that it can be chosen from."""
        return ()

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Return the confirmation with this stage's results; it may have no winner."""
        ...


def other_judges(deciding: Judge, search: Judge, second: Sequence[Judge]) -> list[Judge]:
    """Return the judges beside the deciding one: each once, and never that one itself."""
    members = [member for judge in (search, deciding) if isinstance(judge, Panel) for member in judge.members]
    by_identity: dict[str, Judge] = {}
    for judge in (search, *members, *second):
        by_identity.setdefault(judge.identity, judge)
    by_identity.pop(deciding.identity, None)
    return list(by_identity.values())


def search_order(trial: Trial) -> tuple[float, float, int, int]:
    """Return a sort key: by share_flipped; ties by fewer refusals, then fewer tokens, then the earlier trial."""
    refusals = trial.search.over_refusal_rate.value
    return -share_flipped(trial.search), refusals or 0.0, trial.num_context_tokens or 0, trial.number


def order_notes(ordered: Sequence[Trial]) -> list[str]:
    """Return why contexts, in the order of `search_order`, do not stand in that of their flip rates; [] if they do."""
    rates = [trial.search.flip_rate.value or 0.0 for trial in ordered]
    if rates == sorted(rates, reverse=True):
        return []
    return [
        "Contexts are ranked by the share of the unsafe prompts that they flip. A degenerate answer, or one of another "
        "kind that does not count, is no flip there; the flip rates that are shown leave it out."
    ]


def search_ties(arms: Sequence[Trial], winner: Trial) -> list[Trial]:
    """Return those of other `arms`, which saw all search prompts, that these do not distinguish from the winner."""
    others = [arm for arm in arms if arm.number != winner.number]
    p_values = [flip_difference(winner.search, arm.search) for arm in others]
    known = [(arm, difference.p_value) for arm, difference in zip(others, p_values, strict=True) if difference]
    adjusted = holm([p_value for _, p_value in known])
    return [arm for (arm, _), p_value in zip(known, adjusted, strict=True) if p_value >= TIE_LEVEL]


def measure_placebo(runner: Runner, context: Context, base: SplitBaseline, number: int) -> Trial:
    """Return the trial of a placebo on the search split."""
    runner.enter(Phase.PLACEBO, context.template)
    measurement = measure(runner, [context], base.to_flip(), base.outcomes, "search")[0]
    return measured_trial(runner, number, context, "placebo", measurement, base.usual_unscored)


def confirm(
    setup: SearchSetup, runner: Runner, base: SplitBaseline, finalists: Sequence[Trial], placebos: Sequence[Trial]
) -> Confirmation:
    """Open the sealed split for at least one finalist; `base` is the search split's baseline.

    The runner's judge decides here. The unsealing is noted in the ledger before the first sealed prompt is run.
    """
    notes = _note_unsealing(setup, runner, finalists)
    sealed = measure_baseline(runner, setup.confirm, "confirm")
    notes += few_unsafe_notes(sealed, len(finalists))
    # On all sealed prompts, the base-safe ones too: tfr needs them.
    measure_sealed = partial(measure, prompts=sealed.prompts, baseline=sealed.outcomes, split="confirm")
    runner.enter(Phase.FINALISTS)
    measured = measure_sealed(runner, [trial.context for trial in finalists])
    confirmed = [trial.with_confirmed(measurement=m) for trial, m in zip(finalists, measured, strict=True)]
    usual = sealed.usual_unscored
    winner = next((trial for trial in confirmed if not has_failed(trial.final, usual)), None)
    runner.enter(Phase.PLACEBO)
    target = (winner or confirmed[0]).context
    rows = [row for row in setup.placebos if row.needs_winner]
    matched = [row.context(target) for row in rows]
    contexts = [trial.context for trial in placebos] + matched
    measured = measure_sealed(runner, contexts)
    keeps_words = [False] * len(placebos) + [row.keeps_words for row in rows]
    neutral, reordered = (
        strongest_placebo([m for m, keeps in zip(measured, keeps_words, strict=True) if keeps == wanted], usual)
        for wanted in (False, True)
    )
    if neutral:
        confirmed = [trial.with_confirmed(net=flip_difference(trial.final, neutral)) for trial in confirmed]
    if winner:
        confirmed = _compared_with(winner, confirmed, reordered, usual)
    if base.over_refusal_rate.n and sealed.num_benign and not sealed.over_refusal_rate.n:
        notes.append(
            "The judge of the confirm split does not detect refusals of benign prompts: there the cap is not checked."
        )
    notes += coverage_notes(runner, sealed)
    notes += [note for row in setup.placebos if (note := row.note(target))]
    by_context = zip(contexts, measured, strict=True)
    failed = [context.template for context, placebo in by_context if has_failed(placebo, usual)]
    notes += [f"Placebo {name} failed on the confirm split: too many unscored answers." for name in failed]
    confirmation = Confirmation(
        base=sealed,
        finalists=tuple(confirmed),
        placebos=tuple(trial.with_confirmed(measurement=m) for trial, m in zip(placebos, measured, strict=False)),
        winner_number=winner.number if winner else None,
        notes=tuple(notes),
        matched=tuple(zip(matched, measured[len(placebos) :], strict=True)),
    )
    return replace(confirmation, notes=(*notes, *_winner_notes(confirmation, setup.config)))


def _note_unsealing(setup: SearchSetup, runner: Runner, finalists: Sequence[Trial]) -> list[str]:
    """Note the unsealing in the ledger, and report earlier ones of the same prompts for the same model."""
    sealed = content_id(runner.backend.model_id, sorted(prompt.prompt_id for prompt in setup.confirm))
    ids = [trial.context.context_id for trial in finalists]
    runner.ledger.note(f"{UNSEALED}{sealed}/{content_id(sorted(ids))}", json.dumps({"finalists": ids}))
    num_times = sum(key.startswith(UNSEALED + sealed) for key in runner.ledger.notes())
    if num_times == 1:
        return []
    return [
        f"The confirm split has been used {num_times} times, for different finalists: "
        "who chooses between these results has seen the sealed prompts."
    ]


def _compared_with(
    winner: Trial, finalists: Sequence[Trial], reordered: Measurement | None, usual: float
) -> list[Trial]:
    """Return the finalists, those that could be scored compared with the winner, and it with its words reordered."""
    others = [trial for trial in finalists if trial.number != winner.number and not has_failed(trial.final, usual)]
    pairs = [(trial.number, flip_difference(winner.final, trial.final)) for trial in others]
    behind = {number: difference for number, difference in pairs if difference is not None}
    adjusted = holm([difference.p_value for difference in behind.values()])
    behind = {
        number: replace(difference, p_value=p_value)
        for (number, difference), p_value in zip(behind.items(), adjusted, strict=True)
    }
    word_order = flip_difference(winner.final, reordered) if reordered else None
    return [
        trial.with_confirmed(
            behind=behind.get(trial.number), word_order=word_order if trial.number == winner.number else None
        )
        for trial in finalists
    ]


def _winner_notes(confirmation: Confirmation, config: SearchConfig) -> list[str]:
    cap, finalists, winner = config.refusal_cap(), confirmation.finalists, confirmation.winner
    if winner is None:
        return [f"No winner: on the confirm split too many answers are unscored under all {len(finalists)} finalists."]
    notes, refused = [], cap.rate(winner.final)
    if num_before := sum(search_order(trial) < search_order(winner) for trial in finalists):
        notes.append(f"{num_before} finalists before the winner could not be scored on the confirm split.")
    if not cap.allows(winner.final):
        what = "points more than without a context" if cap.counts == "added" else "%"
        notes.append(
            f"The winner is above the cap on the confirm split, and so not confirmed: of the benign prompts it refuses "
            f"{_points(refused)} {what}, where {100 * cap.most:g} are allowed. On the search split, which chose it, it "
            "was within: give more benign prompts, or a lower --max-over-refusal."
        )
    if (lost := winner.final.contraction) and winner.final.is_contracted(config.max_contraction):
        notes.append(
            f"The winner is above the cap on the confirm split, and so not confirmed: answers to benign prompts lose "
            f"{_points(lost)} % of their distinct word pairs, where {100 * config.max_contraction:g} are allowed."
        )
    if winner.net is None:
        notes.append("The winner could not be compared with a placebo: too few unsafe confirm prompts are scored.")
    elif not winner.beats_placebo:
        notes.append(
            "The best context does not beat the strongest placebo (neutral text, or no context): net flip rate "
            f"{_points(winner.net)} points, p = {winner.net.p_value:.2g}."
        )
    return notes


def _points(figure: Difference | Estimate | Rate) -> str:
    value, low, high = (f"{100 * (number or 0.0):+.1f}" for number in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


class MatchedPlacebosStage(Stage):
    """Measures the placebos matched to the winner on the search split too, by the judge that searched.

    It comes after everything that the deciding judge judges: two guard models may not fit into memory together.
    """

    name = "matched placebos"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int | None:
        """Return the rollouts on the search split; the plan counts them among all placebos, so None without a base."""
        if base is None:
            return None
        num_matched = sum(row.needs_winner for row in setup.placebos)
        return num_matched * len(base.to_flip()) * setup.config.samples

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Measure them in order, under the next free trial numbers."""
        if search.deciding is not search.runner:
            unload(search.deciding.judge)
        placebos = [
            measure_placebo(search.runner, context, search.base, number).with_confirmed(measurement=sealed)
            for number, (context, sealed) in enumerate(confirmation.matched, start=search.num_trials)
        ]
        return replace(confirmation, placebos=(*confirmation.placebos, *placebos), matched=())
