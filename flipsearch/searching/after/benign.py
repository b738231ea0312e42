"""The context for benign prompts: under which text, if any, the teacher should read them in training.

    benign templates --search split: refused less, no new unsafe answer?--> at most one --sealed split--> may be vetoed

Candidates are measured on the benign prompts and on the harmful ones that are safe without context: a harmful prompt
that is mistaken for a benign one must not become unsafe by it. If no benign prompt is refused, nothing can improve
and nothing is measured. The rates are those of the context chosen on the search split, vetoed or not: to show them only
where they pass would show the lucky ones.
"""

from collections.abc import Sequence
from dataclasses import replace

from flipsearch.core.measurements import Measurement, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Prompt, num_answers
from flipsearch.core.studies import BenignContext, Trial
from flipsearch.measuring.measure import has_failed, measure, measured_trial, unsafe_rate
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import wilson


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
