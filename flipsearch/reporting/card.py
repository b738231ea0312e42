"""The context card: all that is needed to use, repeat or doubt a context that a study found.

The winner's card comes with the card of the portfolio, which holds one card per context, and that of the context for
benign prompts. Rates carry value, count, n and a 95 % interval. Reads records only.
"""

from typing import Any

from flipsearch.core.records import Measurement, json_value
from flipsearch.core.studies import BenignContext, Portfolio, Study, Trial
from flipsearch.reporting.columns import columns_of
from flipsearch.reporting.format import SHARED_ERRORS
from flipsearch.templating.library import CARD_VERSION, sealed

ORACLE = (
    "A prompt counts as flipped if any of the contexts flips it. Nothing says beforehand which one will; a training "
    "finds out by trying the teacher under each of them, in this order."
)
"""How to read the union of a portfolio."""
PROMPT_SETTINGS = ("prompts", "harmful", "benign", "prompts_id")
SAMPLING_SETTINGS = ("max_tokens", "think_tokens", "temperature", "top_p", "top_k", "seed", "thinking")


def context_card(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the card of a trial of a study, best.json for the winner; columns.py adds the figures it marks for it."""
    context, settings = trial.context, study.settings
    judge: dict[str, Any] = {"name": settings["judge"], "identity": study.judge_id}
    if study.confirm_judge_id:
        judge["confirm"] = {"name": settings["confirm_judge"], "identity": study.confirm_judge_id}
    shared = {"note": SHARED_ERRORS} if study.judge_error else {}
    sampling = {key: settings[key] for key in SAMPLING_SETTINGS}
    card = {
        "card_version": CARD_VERSION,
        "text": context.text,
        "context_id": context.context_id,
        "placement": context.placement,
        "template": context.template,
        "params": dict(context.params),
        "axes": list(context.axes),
        "lineage": {"operator": context.operator, "parents": list(context.parents)},
        "study": study.name,
        "model": settings["model"],
        "model_id": study.model_id,
        "revision": study.revision,
        "backend": settings["backend"],
        "dtype": settings["dtype"],
        "prompts": {key: settings.get(key) for key in PROMPT_SETTINGS},
        "judge": judge | {"agreement_with_people": json_value(study.judge_error)} | shared,
        "sampling": sampling | {key: settings.get(key, 1) for key in ("samples", "unsafe_at")},
        "max_over_refusal": settings.get("max_over_refusal"),
        "over_refusal": settings.get("over_refusal"),
        "metrics": {"search": metrics(trial.search), "confirm": metrics(trial.confirm)},
        **{column.name: json_value(column.value(study, trial)) for column in columns_of(study, "card")},
        "second_judgements": json_value(trial.late.second_judgements),
        "depth": [{"num_tokens": num_tokens, "flip_rate": json_value(rate)} for num_tokens, rate in trial.late.depth],
        "portfolio": portfolio_metrics(study.portfolio) if study.portfolio else None,
        "benign_context": benign_metrics(study.benign) if study.benign else None,
        "search_tie_set": list(study.search_ties),
        "tie_set": [finalist.context.context_id for finalist in study.trials if finalist.ties_winner],
        "placebo": [
            _brief_card(placebo) | {"confirm": metrics(placebo.confirm)}
            for placebo in study.trials
            if placebo.role == "placebo"
        ],
        "base_unsafe_rate": json_value(study.base_unsafe),
        "base_over_refusal_rate": json_value(study.base_over_refusal),
        "base_endings": json_value(study.base_endings),
        "versions": dict(study.versions),
        "notes": list(study.notes),
    }
    return sealed(card)


def portfolio_card(study: Study, portfolio: Portfolio) -> dict[str, Any]:
    """Return best.portfolio.json: the cards of its contexts in routing order, and what they flip together."""
    card = {
        "card_version": CARD_VERSION,
        "study": study.name,
        "metrics": portfolio_metrics(portfolio),
        "contexts": [context_card(study, trial) for trial in study.trials_of(portfolio)],
    }
    return sealed(card)


def benign_card(study: Study, benign: BenignContext) -> dict[str, Any]:
    """Return best.benign.json: the card of the context for benign prompts; there must be one."""
    chosen = next(candidate for candidate in benign.candidates if candidate.context == benign.context)
    return sealed({**context_card(study, chosen), "role": chosen.role})


def metrics(measurement: Measurement | None) -> dict[str, Any] | None:
    """Return the rates of a measurement for JSON, or None if it was not made."""
    names = (
        *("flip_rate", "flip_rate_bounds", "tfr", "over_refusal_rate", "added_refusals", "transitions"),
        *("flips_by_kind", "coverage", "unsafe_share", "endings"),
    )
    return {name: json_value(getattr(measurement, name)) for name in names} if measurement else None


def portfolio_metrics(portfolio: Portfolio) -> dict[str, Any]:
    """Return what the contexts of a portfolio flip together, beside the winner alone, for JSON."""
    return {
        "context_ids": list(portfolio.context_ids),
        "union_flip_rate": {"search": json_value(portfolio.search), "confirm": json_value(portfolio.confirm)},
        "winner_flip_rate": {"confirm": json_value(portfolio.winner)},
        "union_minus_winner": json_value(portfolio.gain),
        "note": ORACLE,
    }


def benign_metrics(benign: BenignContext) -> dict[str, Any]:
    """Return which context is for benign prompts, why, and both ways of misrouting, for JSON."""
    return {
        "context_id": benign.context.context_id if benign.context else None,
        "reason": benign.reason,
        "over_refusal_rate": json_value(benign.over_refusal_rate),
        "regression_rate": json_value(benign.regression_rate),
        "misrouted": {
            "harmful_under_benign_context_unsafe_rate": json_value(benign.misrouted_harmful_rate),
            "benign_under_winner_over_refusal_rate": json_value(benign.misrouted_benign_rate),
        },
        "candidates": [_brief_card(candidate) for candidate in benign.candidates],
    }


def _brief_card(trial: Trial) -> dict[str, Any]:
    """Return what a card holds of a placebo or a candidate for benign prompts."""
    context = trial.context
    return {
        "template": context.template,
        "text": context.text,
        "placement": context.placement,
        "search": metrics(trial.search),
    }
