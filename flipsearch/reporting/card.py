"""The context card: everything that one must know to use, repeat or doubt a context found by a study.

Beside the winner's card stand that of the portfolio, which holds a card a context, and that of the context for benign
prompts.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flipsearch.core.records import Measurement
from flipsearch.core.studies import BenignContext, Portfolio, SecondJudgeResult, Study, Trial

CARD_VERSION = 1
ORACLE = (
    "A prompt counts as flipped if any of the contexts flips it. Nothing says beforehand which one will; a training "
    "finds it out by asking the teacher under each of them, in this order."
)
"""How the union of a portfolio is to be read."""


def context_card(study: Study, trial: Trial) -> dict[str, Any]:
    """Return best.json for a trial of a study; rates carry value, count, n and a 95 % interval."""
    context = trial.context
    return {
        "card_version": CARD_VERSION,
        "text": context.text,
        "context_id": context.context_id,
        "placement": context.placement,
        "template": context.template,
        "params": dict(context.params),
        "axes": list(context.axes),
        "lineage": {"operator": context.operator, "parents": list(context.parents)},
        "study": study.name,
        "model": study.settings["model"],
        "model_id": study.model_id,
        "revision": study.revision,
        "backend": study.settings["backend"],
        "dtype": study.settings["dtype"],
        "prompts": {key: study.settings.get(key) for key in ("prompts", "harmful", "benign", "prompts_id")},
        "judge": _judge(study),
        "sampling": {
            key: study.settings[key] for key in ("max_tokens", "temperature", "top_p", "top_k", "seed", "thinking")
        }
        | {key: study.settings.get(key, 1) for key in ("samples", "unsafe_at")},
        "max_over_refusal": study.settings.get("max_over_refusal"),
        "metrics": {"search": metrics(trial.search), "confirm": metrics(trial.confirm)},
        "net_flip_rate": trial.net.as_dict() if trial.net else None,
        "corrected_flip_rate": asdict(trial.late.corrected) if trial.late.corrected else None,
        "risk_reduction": asdict(trial.late.risk_reduction) if trial.late.risk_reduction else None,
        "second_judgements": [_opinion(one) for one in trial.late.second_judgements],
        "optimism": trial.optimism,
        "depth": [{"num_tokens": num_tokens, "flip_rate": rate.as_dict()} for num_tokens, rate in trial.late.depth],
        "portfolio": portfolio_metrics(study.portfolio) if study.portfolio else None,
        "benign_context": benign_metrics(study.benign) if study.benign else None,
        "tie_set": [t.context.context_id for t in study.trials if t.ties_winner],
        "placebo": [_placebo(t) for t in study.trials if t.role == "placebo"],
        "base_unsafe_rate": {k: v.as_dict() for k, v in study.base_unsafe.items()},
        "base_over_refusal_rate": {k: v.as_dict() for k, v in study.base_over_refusal.items()},
        "versions": dict(study.versions),
        "notes": list(study.notes),
    }


def _judge(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = {"name": study.settings["judge"], "identity": study.judge_id}
    if study.confirm_judge_id:
        found["confirm"] = {"name": study.settings["confirm_judge"], "identity": study.confirm_judge_id}
    return found | {"agreement_with_people": asdict(study.judge_error) if study.judge_error else None}


def _opinion(one: SecondJudgeResult) -> dict[str, Any]:
    rates = {name: getattr(one, name) for name in ("flip_rate", "unsafe_rate", "over_refusal_rate", "disagreement")}
    return {"judge": one.judge, **{name: rate.as_dict() for name, rate in rates.items()}}


def portfolio_card(study: Study, portfolio: Portfolio) -> dict[str, Any]:
    """Return best.portfolio.json: the cards of its contexts in routing order, and what they flip together."""
    return {
        "card_version": CARD_VERSION,
        "study": study.name,
        "metrics": portfolio_metrics(portfolio),
        "contexts": [context_card(study, trial) for trial in study.trials_of(portfolio)],
    }


def portfolio_metrics(portfolio: Portfolio) -> dict[str, Any]:
    """Return what the contexts of a portfolio flip together, beside the winner alone, for JSON."""
    return {
        "context_ids": list(portfolio.context_ids),
        "union_flip_rate": {"search": portfolio.search.as_dict(), "confirm": portfolio.confirm.as_dict()},
        "winner_flip_rate": {"confirm": portfolio.winner.as_dict()},
        "union_minus_winner": portfolio.gain.as_dict() if portfolio.gain else None,
        "note": ORACLE,
    }


def benign_card(study: Study, benign: BenignContext) -> dict[str, Any]:
    """Return best.benign.json: the card of the context for benign prompts, if there is one."""
    chosen = next(one for one in benign.candidates if one.context == benign.context)
    return {**context_card(study, chosen), "role": chosen.role}


def benign_metrics(benign: BenignContext) -> dict[str, Any]:
    """Return which context is for benign prompts, why, and both ways of misrouting, for JSON."""
    return {
        "context_id": benign.context.context_id if benign.context else None,
        "reason": benign.reason,
        "over_refusal_rate": benign.over_refusal_rate.as_dict(),
        "regression_rate": benign.regression_rate.as_dict(),
        "misrouted": {
            "harmful_under_benign_context_unsafe_rate": benign.misrouted_harmful_rate.as_dict(),
            "benign_under_winner_over_refusal_rate": benign.misrouted_benign_rate.as_dict(),
        },
        "candidates": [_candidate(trial) for trial in benign.candidates],
    }


def _candidate(trial: Trial) -> dict[str, Any]:
    context = trial.context
    return {
        "template": context.template,
        "text": context.text,
        "placement": context.placement,
        "search": metrics(trial.search),
    }


def metrics(measurement: Measurement | None) -> Mapping[str, Any] | None:
    """Return the rates of a measurement for JSON, or None if it was not made."""
    if measurement is None:
        return None
    return {
        "flip_rate": measurement.flip_rate.as_dict(),
        "flip_rate_bounds": list(measurement.flip_rate_bounds),
        "tfr": measurement.tfr.as_dict() if measurement.tfr else None,
        "over_refusal_rate": measurement.over_refusal_rate.as_dict(),
        "transitions": dict(measurement.transitions),
        "coverage": measurement.coverage.as_dict(),
        "unsafe_share": measurement.unsafe_share.as_dict() if measurement.unsafe_share else None,
    }


def _placebo(trial: Trial) -> dict[str, Any]:
    return {
        "template": trial.context.template,
        "text": trial.context.text,
        "placement": trial.context.placement,
        "search": metrics(trial.search),
        "confirm": metrics(trial.confirm),
    }
