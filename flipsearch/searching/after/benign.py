"""The context for benign prompts: which text, if any, the teacher should read them under in training.

    benign templates --search split: less refused, nothing newly unsafe?--> one or none --sealed split--> may veto

Tried on the benign prompts and on the harmful ones that are safe without context: a harmful prompt that is taken for a
benign one must not turn unsafe by it. Without refusals there is nothing to gain, and nothing is asked.
"""

from collections.abc import Sequence

from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Measurement, Prompt, Rate
from flipsearch.core.studies import BenignContext, Trial
from flipsearch.measuring.measure import has_failed, measure, unsafe_rate
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import wilson


def try_benign(plan: SearchSetup, runner: Runner, base: SplitBaseline) -> list[Trial]:
    """Return a trial on the search split for every candidate; none where no benign prompt is refused anyway."""
    if not num_benign_rollouts(plan, base):
        return []
    runner.enter(Phase.BENIGN_CONTEXTS)
    measured = measure(runner, plan.benign_contexts, _prompts(base), base.outcomes, "search")
    return [
        Trial(
            number,
            context,
            "benign",
            "failed" if has_failed(one) else "complete",
            rung=0,
            search=one,
            num_context_tokens=runner.backend.count_tokens(context.text),
        )
        for number, (context, one) in enumerate(zip(plan.benign_contexts, measured, strict=True))
    ]


def choose_benign(candidates: Sequence[Trial], base: SplitBaseline) -> Trial | None:
    """Return the candidate that is refused least and makes nothing unsafe; None if it is refused no less than none.

    Of equals, the one with fewer tokens, then the first.
    """
    without = base.over_refusal_rate.value
    fit = [one for one in candidates if one.state == "complete" and not regressions(one.search).count]
    order = {one.number: _refused(one.search) for one in fit}
    best = min(fit, key=lambda one: (order[one.number], one.num_context_tokens or 0, one.number), default=None)
    return best if best and without is not None and order[best.number] < without else None


def confirm_benign(
    plan: SearchSetup,
    runner: Runner,
    base: SplitBaseline,
    sealed: SplitBaseline,
    candidates: Sequence[Trial],
    winner: Trial,
) -> BenignContext | None:
    """Return the choice with its numbers on the opened confirm split; None if no choice was asked for."""
    if not plan.config.benign_context:
        return None
    chosen, reason = choose_benign(candidates, base), _why_none(plan, base, candidates)
    if chosen:
        runner.enter(Phase.BENIGN_CONTEXTS)
        found = measure(runner, [chosen.context], sealed.prompts, sealed.outcomes, "confirm")[0]
        chosen = chosen.with_confirm(found, None)
        candidates = [chosen if one.number == chosen.number else one for one in candidates]
        if not (reason := _veto(found, sealed)):
            why = f"{chosen.context.template} is refused least on the search split, and makes nothing unsafe."
            return _told(chosen, why, candidates, sealed, winner)
    return _told(None, reason, candidates, sealed, winner)


def num_benign_rollouts(plan: SearchSetup, base: SplitBaseline) -> int:
    """Return the most rollouts that the choice will take; 0 where no benign prompt is refused without a context."""
    if not plan.benign_contexts or not base.over_refusal_rate.count:
        return 0
    return len(plan.benign_contexts) * len(_prompts(base)) + len(plan.confirm)


def regressions(measurement: Measurement) -> Rate:
    """Return new unsafe answers / scored harmful prompts that are safe without context."""
    of = [flip for flip in measurement.flips if flip.kind == "harmful" and flip.before is Label.SAFE]
    return wilson(sum(flip.regressed for flip in of), sum(flip.after is not Label.UNSCORED for flip in of))


def _prompts(base: SplitBaseline) -> list[Prompt]:
    """The benign prompts, and the harmful ones that are safe without context."""
    label = {id: draws.label for id, draws in base.outcomes.items()}
    return [one for one in base.prompts if one.kind == "benign" or label[one.prompt_id] is Label.SAFE]


def _told(
    chosen: Trial | None, reason: str, candidates: Sequence[Trial], sealed: SplitBaseline, winner: Trial
) -> BenignContext:
    assert winner.confirm is not None
    found = chosen.confirm if chosen else None
    safe = sum(sealed.outcomes[p.prompt_id].label is Label.SAFE for p in sealed.prompts if p.kind == "harmful")
    harmful = [flip.after for flip in found.flips if flip.kind == "harmful"] if found else []
    return BenignContext(
        context=chosen.context if chosen else None,
        reason=reason,
        candidates=tuple(candidates),
        over_refusal_rate=found.over_refusal_rate if found else sealed.over_refusal_rate,
        regression_rate=regressions(found) if found else wilson(0, safe),
        misrouted_harmful_rate=unsafe_rate(harmful) if found else sealed.unsafe_rate,
        misrouted_benign_rate=winner.confirm.over_refusal_rate,
    )


def _why_none(plan: SearchSetup, base: SplitBaseline, candidates: Sequence[Trial]) -> str:
    if not plan.benign_contexts:
        return "There is no template for benign prompts."
    if not base.over_refusal_rate.n:
        return "Over-refusal is not measured on the search split, so that none could be seen to be refused less."
    if not candidates:
        return "No benign search prompt is refused without a context: there is nothing to gain."
    harms = sum(bool(regressions(one.search).count) for one in candidates)
    return f"No context is refused less on the search split ({len(candidates)} tried, {harms} make something unsafe)."


def _veto(found: Measurement, sealed: SplitBaseline) -> str:
    """Why the confirm split speaks against a context; "" if it does not."""
    if has_failed(found):
        return "The context chosen on the search split could not be scored on the confirm split."
    if num := regressions(found).count:
        return f"The context chosen on the search split makes {num} answers unsafe on the confirm split."
    if not sealed.over_refusal_rate.n:
        return "The judge of the confirm split tells no refusals, so that none could be seen to be refused less."
    if _refused(found) > (sealed.over_refusal_rate.value or 0.0):
        return "The context chosen on the search split is refused more than none on the confirm split."
    return ""


def _refused(measurement: Measurement) -> float:
    rate = measurement.over_refusal_rate.value
    return 1.0 if rate is None else rate
