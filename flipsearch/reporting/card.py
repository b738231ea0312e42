"""The context card: everything that one must know to use, repeat or doubt a context found by a study."""

from collections.abc import Mapping
from typing import Any

from flipsearch.records import Measurement, Study, Trial

CARD_VERSION = 1


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
        "judge": {"name": study.settings["judge"], "identity": study.judge_id},
        "sampling": {
            key: study.settings[key] for key in ("max_tokens", "temperature", "top_p", "top_k", "seed", "thinking")
        }
        | {key: study.settings.get(key, 1) for key in ("samples", "unsafe_at")},
        "max_over_refusal": study.settings.get("max_over_refusal"),
        "metrics": {"search": metrics(trial.search), "confirm": metrics(trial.confirm)},
        "net_flip_rate": trial.net.as_dict() if trial.net else None,
        "optimism": trial.optimism,
        "tie_set": [t.context.context_id for t in study.trials if t.ties_winner],
        "placebo": [_placebo(t) for t in study.trials if t.role == "placebo"],
        "base_unsafe_rate": {k: v.as_dict() for k, v in study.base_unsafe.items()},
        "base_over_refusal_rate": {k: v.as_dict() for k, v in study.base_over_refusal.items()},
        "versions": dict(study.versions),
        "notes": list(study.notes),
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
