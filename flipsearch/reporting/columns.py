"""Trials to ranked rows: the leaderboard as a table.

One row a trial, best first, placebos last; every rate stands with its count, n and interval.
"""

from typing import Any

import pandas as pd

from flipsearch.core.files import escape_formula
from flipsearch.core.records import Measurement, Rate
from flipsearch.core.studies import Study, StudyKind, Trial


def leaderboard(study: Study) -> pd.DataFrame:
    """Return one row a trial, in the order of the study (best first, placebos last); counts are whole numbers."""
    return pd.DataFrame(rows(study)).convert_dtypes()


def rows(study: Study) -> list[dict[str, Any]]:
    """Return the rows of the leaderboard for JSON."""
    return [row(study, trial, rank) for rank, trial in enumerate(study.trials, start=1)]


def is_search(study: Study) -> bool:
    """Return whether contexts were searched, or only scored (then nothing was chosen, and nothing confirmed)."""
    return study.kind is StudyKind.SEARCH


def row(study: Study, trial: Trial, rank: int) -> dict[str, Any]:
    """Return the columns of one trial; a rate that was not measured is empty, never 0."""
    context = trial.context
    return {
        "rank": rank,
        "winner": study.winner is not None and study.winner.context.context_id == context.context_id,
        "role": trial.role,
        "state": trial.state,
        "over_cap": study.is_over_cap(trial),
        "rung": trial.rung,
        "trial": trial.number,
        "template": context.template,
        "placement": context.placement,
        "params": ", ".join(f"{k}={v}" for k, v in context.params),
        "num_context_tokens": trial.num_context_tokens,
        **_measured(trial.search.split, trial.search),
        **(_measured("confirm", trial.confirm) if is_search(study) else {}),
        **(_shares(study, trial) if study.settings.get("samples", 1) > 1 else {}),
        "net_flip_rate": trial.net.value if trial.net else None,
        "net_flip_rate_low": trial.net.low if trial.net else None,
        "net_flip_rate_high": trial.net.high if trial.net else None,
        "net_p_value": trial.net.p_value if trial.net else None,
        **_finalist(trial),
        **_by_depth(study, trial),
        **_by_judges(study, trial),
        "context_id": context.context_id,
        "parents": " ".join(context.parents),
        "operator": context.operator,
        "text": context.text,
    }


def _finalist(trial: Trial) -> dict[str, Any]:
    behind = trial.late.behind
    return {
        "optimism": trial.optimism,
        "behind_winner": behind.value if behind else None,
        "behind_winner_low": behind.low if behind else None,
        "behind_winner_high": behind.high if behind else None,
        "behind_winner_p_value": behind.p_value if behind else None,
        "ties_winner": trial.ties_winner,
    }


def depths(study: Study) -> list[int]:
    """Return the depths at which finalists were measured, 0 included; [] if none was."""
    return sorted({depth for trial in study.trials for depth, _ in trial.late.depth})


def _by_depth(study: Study, trial: Trial) -> dict[str, Any]:
    found, cells = dict(trial.late.depth), dict[str, Any]()
    for depth in depths(study)[1:]:  # depth 0 is the confirm flip rate
        cells |= _rate(f"depth_{depth}_flip_rate", found.get(depth))
    return cells


def _by_judges(study: Study, trial: Trial) -> dict[str, Any]:
    """What other judges say, and the flip rate with the judge's errors taken back, where that is known."""
    heard = next((one.late.second_judgements for one in study.trials if one.late.second_judgements), ())
    said, cells = {one.judge: one for one in trial.late.second_judgements}, dict[str, Any]()
    for judge in (one.judge for one in heard):
        for field in ("flip_rate", "unsafe_rate", "over_refusal_rate", "disagreement"):
            rate = getattr(said[judge], field) if judge in said else None
            cells[f"{field} ({judge})"] = rate.value if rate else None
    shown = {
        "corrected_flip_rate": study.judge_error,
        "risk_reduction": any(one.late.risk_reduction for one in study.trials),
    }
    for name, is_shown in shown.items():
        found = trial.late.corrected if name == "corrected_flip_rate" else trial.late.risk_reduction
        ends = ("value", "low", "high") if is_shown else ()
        cells |= {name + ("" if end == "value" else f"_{end}"): getattr(found, end, None) for end in ends}
    return cells


def _measured(split: str, measurement: Measurement | None) -> dict[str, Any]:
    flips = measurement.flip_rate if measurement else None
    refusals = measurement.over_refusal_rate if measurement else None
    return {
        **_rate(f"{split}_flip_rate", flips),
        **_rate(f"{split}_tfr", measurement.tfr if measurement else None),
        **_rate(f"{split}_over_refusal_rate", refusals),
        f"{split}_coverage": measurement.coverage.value if measurement else None,
    }


def _shares(study: Study, trial: Trial) -> dict[str, Any]:
    """The shares of unsafe draws, for studies with several draws a prompt."""
    measured = {trial.search.split: trial.search} | ({"confirm": trial.confirm} if is_search(study) else {})
    return {
        f"{split}_unsafe_share_{side}{end}": getattr(getattr(one.unsafe_share, side), field)
        if one and one.unsafe_share
        else None
        for split, one in measured.items()
        for side in ("before", "after")
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"), ("_n", "n"))
    }


def _rate(name: str, rate: Rate | None) -> dict[str, Any]:
    if rate is None or not rate.n:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_count", f"{name}_n"))
    return {
        name: rate.value,
        f"{name}_low": rate.low,
        f"{name}_high": rate.high,
        f"{name}_count": rate.count,
        f"{name}_n": rate.n,
    }


def csv_text(frame: pd.DataFrame) -> str:
    """Return the leaderboard as CSV.

    A text cell that a spreadsheet would run as a formula gets a leading apostrophe: contexts are hostile text. A
    carriage return becomes a line break: a lone one would be left bare, and readers would end the row there.
    """
    safe = frame.copy()
    for name in safe.select_dtypes(include=["object", "string"]).columns:
        safe[name] = [_one_row(cell) for cell in safe[name]]
    return safe.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def _one_row(cell: Any) -> Any:
    return escape_formula(cell).replace("\r\n", "\n").replace("\r", "\n") if isinstance(cell, str) else cell
