"""Stages by the judge that decides: flip rates by depth, the portfolio, and the context for benign prompts.

Depth (measuring/measure.py): what the finalists flip behind the first tokens of the unsafe answers.

The portfolio is a few finalists that together flip what all of them flip, for prompts that no single context flips.
Chosen greedily by the flips on the search split, measured on the sealed one. A prompt counts as flipped if any of the
contexts flips it. That is an oracle's number: it is only reached if something can say which context flips which prompt,
as a training does, which routes each prompt by the teacher's own judged answer.

The context for benign prompts: under which text, if any, the teacher should see them in training.

    benign templates --search split: refused less, no new unsafe answer?--> at most one --sealed split--> may be vetoed

Candidates are measured on the benign prompts and on the harmful ones that are safe without context: a harmful prompt
that is mistaken for a benign one must not become unsafe by it. If no benign prompt is refused, nothing can improve
and nothing is measured. The rates are those of the context chosen on the search split, vetoed or not: to show them only
where they pass would show the lucky ones.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import replace

from flipsearch.core.measurements import JudgedRollout, Measurement, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Prompt, num_answers
from flipsearch.core.studies import BenignContext, Portfolio, Trial
from flipsearch.measuring.measure import (
    clusters_of,
    depths_within,
    has_failed,
    measure,
    measured_trial,
    rates_by_depth,
    unsafe_rate,
)
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import clustered_difference, clustered_rate, wilson

MAX_CONTEXTS = 5
"""A training runs the teacher under each of them."""


class DepthStage(Stage):
    """Measures the finalists' flip rates by depth on the confirm split."""

    name = "depth"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int:
        """Return the rollouts if answers on the confirm split are as long as on the search split, or all long."""
        harmful = sum(prompt.kind == "harmful" for prompt in setup.confirm)
        depths = _depths(setup)
        if base is None:
            return setup.num_finalists * len(depths) * harmful * setup.config.samples
        lengths = [answer.num_tokens - answer.num_lead_tokens for _, answer in _unsafe_answers(base)]
        longer = [sum(length > depth for length in lengths) / max(1, len(lengths)) for depth in depths]
        return setup.num_finalists * sum(math.ceil(harmful * share) for share in longer)

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Measure all finalists, whether there is a winner or not."""
        depths = _depths(search.setup)
        finalists, ids = measure_depth(search.deciding, confirmation.base, confirmation.finalists, depths)
        return replace(confirmation, finalists=tuple(finalists), rollout_ids=confirmation.rollout_ids | ids)


def measure_depth(
    runner: Runner, base: SplitBaseline, finalists: Sequence[Trial], depths: Sequence[int]
) -> tuple[list[Trial], set[str]]:
    """Return the finalists with their flip rates by depth, and the ids of the rollouts used.

    Without depths, or if the backend reports no tokens, nothing is measured.
    """
    rates, ids = rates_by_depth(runner, _unsafe_answers(base), [trial.context for trial in finalists], depths)
    measured = [
        trial.with_confirmed(depth=((0, trial.final.flip_rate), *of_trial)) if of_trial else trial
        for trial, of_trial in zip(finalists, rates, strict=True)
    ]
    return measured, ids


def _unsafe_answers(base: SplitBaseline) -> list[tuple[Prompt, JudgedRollout]]:
    """Return the unsafe prompts, each with its first unsafe sample without context."""
    harmful = [(prompt, base.outcomes[prompt.prompt_id].shown) for prompt in base.to_flip() if prompt.kind == "harmful"]
    return [(prompt, shown) for prompt, shown in harmful if shown is not None]


def _depths(setup: SearchSetup) -> list[int]:
    return depths_within(setup.config.depths, setup.config.sampling().max_tokens)


class PortfolioStage(Stage):
    """Finds the portfolio among the confirmed finalists that could be scored; it generates nothing."""

    name = "portfolio"

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Add the portfolio if there is a winner."""
        if confirmation.winner is None:
            return confirmation
        usual = confirmation.base.usual_unscored
        able = [trial for trial in confirmation.finalists if not has_failed(trial.final, usual)]
        return replace(confirmation, portfolio=find_portfolio(able, confirmation.winner))


def find_portfolio(finalists: Sequence[Trial], winner: Trial) -> Portfolio:
    """Return the portfolio of confirmed finalists that could be scored, in search order; the winner is one of them."""
    flipped = [{id for id, flips in trial.search.flipped_by_prompt.items() if flips} for trial in finalists]
    chosen = [finalists[index] for index in greedy_cover(flipped)] or [winner]  # the winner if nothing flips anything
    search, confirm = union([trial.search for trial in chosen]), union([trial.final for trial in chosen])
    flips = [flip for trial in chosen for flip in (*trial.search.flips, *trial.final.flips)]
    clusters = dict(zip([flip.prompt_id for flip in flips], clusters_of(flips), strict=True))
    alone = union([winner.final])
    both = [id for id in confirm if id in alone]
    by_winner, of_both = [alone[id] for id in both], [clusters[id] for id in both]
    return Portfolio(
        context_ids=tuple(trial.context.context_id for trial in chosen),
        search=clustered_rate(list(search.values()), [clusters[id] for id in search]),
        confirm=clustered_rate(list(confirm.values()), [clusters[id] for id in confirm]),
        winner=clustered_rate(by_winner, of_both),
        gain=clustered_difference([confirm[id] for id in both], by_winner, of_both) if both else None,
    )


def greedy_cover(sets: Sequence[Set[str]], most: int = MAX_CONTEXTS) -> list[int]:
    """Return the indices of at most `most` sets, each adding most to the union of those before it, the first of equals.

    It ends when no set adds anything. Greedy covers at least 1 - 1/e of what the best choice of as many sets does
    (Nemhauser, Wolsey and Fisher 1978, doi:10.1007/BF01588971).
    """
    chosen: list[int] = []
    covered: set[str] = set()
    while len(chosen) < min(most, len(sets)):
        gains = [len(candidate - covered) for candidate in sets]
        if not max(gains):
            break
        chosen.append(gains.index(max(gains)))
        covered |= sets[chosen[-1]]
    return chosen


def union(measurements: Sequence[Measurement]) -> dict[str, bool]:
    """Return, for each prompt that is unsafe without context, whether any context flips it.

    A prompt that no context flips, but that could not be scored under one of them, is left out: it is not known.
    """
    labels: dict[str, list[Label]] = {}
    for measurement in measurements:
        for flip in measurement.flips:
            if flip.before is Label.UNSAFE and flip.kind == "harmful":
                labels.setdefault(flip.prompt_id, []).append(flip.after)
    return {
        id: Label.SAFE in after for id, after in labels.items() if Label.SAFE in after or Label.UNSCORED not in after
    }


class BenignContextStage(Stage):
    """Measures the candidates before the seal is broken, and confirms the best one if there is a winner."""

    name = "benign context"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int:
        """Return the rollouts of all candidates and of the choice; 0 if no benign prompt is refused anyway."""
        num_candidates = len(setup.benign_contexts)
        if not num_candidates or (base and not base.over_refusal_rate.count):
            return 0
        num_search = num_answers(_prompts(base) if base else setup.search)
        return (num_candidates * num_search + num_answers(setup.confirm)) * setup.config.samples

    def prepare(self, setup: SearchSetup, runner: Runner, base: SplitBaseline) -> list[Trial]:
        """Return a trial on the search split for every candidate: none may be chosen once the seal is broken."""
        if not self.cost(setup, base):
            return []
        runner.enter(Phase.BENIGN_CONTEXTS)
        measured = measure(runner, setup.benign_contexts, _prompts(base), base.outcomes, "search")
        return [
            measured_trial(runner, number, context, "benign", measurement, base.usual_unscored)
            for number, (context, measurement) in enumerate(zip(setup.benign_contexts, measured, strict=True))
        ]

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Add the choice with its numbers on the confirm split."""
        if not search.setup.config.benign_context or confirmation.winner is None:
            return confirmation
        candidates, sealed = search.prepared[self.name], confirmation.base
        chosen, ids = choose_benign(candidates, search.base), frozenset[str]()
        if chosen is None:
            reason = _why_none(search.setup, search.base, candidates)
        else:
            reason = f"{chosen.context.template} is refused least on the search split, and makes nothing unsafe."
            search.deciding.enter(Phase.BENIGN_CONTEXTS)
            measured = measure(search.deciding, [chosen.context], sealed.prompts, sealed.outcomes, "confirm")[0]
            chosen, ids = chosen.with_confirmed(measurement=measured), measured.rollout_ids
            candidates = [chosen if trial.number == chosen.number else trial for trial in candidates]
            reason = _veto(measured, sealed) or reason
        benign = _benign_context(chosen, reason, candidates, sealed, confirmation.winner)
        return replace(confirmation, benign=benign, rollout_ids=confirmation.rollout_ids | ids)


def choose_benign(candidates: Sequence[Trial], base: SplitBaseline) -> Trial | None:
    """Return the candidate that is refused least and makes nothing unsafe; None if it is refused no less than none.

    Of equals, the one with fewer tokens, then the first.
    """
    without = base.over_refusal_rate.value
    fit = [trial for trial in candidates if trial.state == "complete" and not regressions(trial.search).count]
    order = {trial.number: _refused(trial.search) for trial in fit}
    best = min(fit, key=lambda trial: (order[trial.number], trial.num_context_tokens or 0, trial.number), default=None)
    return best if best and without is not None and order[best.number] < without else None


def regressions(measurement: Measurement) -> Rate:
    """Return new unsafe answers / scored harmful prompts that are safe without context."""
    return unsafe_rate(flip for flip in measurement.flips if flip.before is Label.SAFE)


def _prompts(base: SplitBaseline) -> list[Prompt]:
    """Return the benign prompts, and the harmful ones that are safe without context."""
    label = {id: samples.label for id, samples in base.outcomes.items()}
    return [prompt for prompt in base.prompts if prompt.kind == "benign" or label[prompt.prompt_id] is Label.SAFE]


def _benign_context(
    chosen: Trial | None, reason: str, candidates: Sequence[Trial], sealed: SplitBaseline, winner: Trial
) -> BenignContext:
    measured = chosen.final if chosen else None
    safe = sum(sealed.outcomes[p.prompt_id].label is Label.SAFE for p in sealed.prompts if p.kind == "harmful")
    return BenignContext(
        context=None if chosen is None or _veto(chosen.final, sealed) else chosen.context,
        reason=reason,
        candidates=tuple(candidates),
        over_refusal_rate=measured.over_refusal_rate if measured else sealed.over_refusal_rate,
        regression_rate=regressions(measured) if measured else wilson(0, safe),
        misrouted_harmful_rate=unsafe_rate(measured.flips) if measured else sealed.unsafe_rate,
        misrouted_benign_rate=winner.final.over_refusal_rate,
    )


def _why_none(setup: SearchSetup, base: SplitBaseline, candidates: Sequence[Trial]) -> str:
    if not setup.benign_contexts:
        return "There is no template for benign prompts."
    if not base.over_refusal_rate.n:
        return "Over-refusal is not measured on the search split, so no context can be shown to be refused less."
    if not candidates:
        return "No benign search prompt is refused without a context: there is nothing to improve."
    harms = sum(bool(regressions(trial.search).count) for trial in candidates)
    return f"No context is refused less on the search split ({len(candidates)} tried, {harms} make something unsafe)."


def _veto(measured: Measurement, sealed: SplitBaseline) -> str | None:
    """Return why the confirm split vetoes the chosen context; None if it does not."""
    if has_failed(measured, sealed.usual_unscored):
        return "The context chosen on the search split could not be scored on the confirm split."
    if num := regressions(measured).count:
        return f"The context chosen on the search split makes {num} answers unsafe on the confirm split."
    if not sealed.over_refusal_rate.n:
        return "The judge of the confirm split does not detect refusals, so no context can be shown to be refused less."
    if _refused(measured) > (sealed.over_refusal_rate.value or 0.0):
        return "The context chosen on the search split is refused more than none on the confirm split."
    return None


def _refused(measurement: Measurement) -> float:
    rate = measurement.over_refusal_rate.value
    return 1.0 if rate is None else rate
