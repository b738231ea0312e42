"""The files of an anatomy and of a preflight, which look at a context and a model; every text is escaped.

An anatomy has its page, its record and the divergence by position as a table; a preflight its page and its record.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flipsearch.core.display import printable
from flipsearch.core.files import json_text, write_text
from flipsearch.core.measurements import Estimate, Measurement, Rate, json_value
from flipsearch.core.trainings import EARLY, RELIABLE, Anatomy, CompletionDivergence
from flipsearch.reporting import charts
from flipsearch.reporting.charts import Chart, ChartAxis, Series, draw
from flipsearch.reporting.format import DASH, interval, percent, points, setting_rows
from flipsearch.reporting.pages import render

if TYPE_CHECKING:  # which loads torch
    from flipsearch.training.preflight_checks import Preflight

MIN_COMPLETIONS = 5
"""A position that fewer completions reach is not drawn."""
LAST_POSITION = 64
LARGE_SHARE = 0.2
"""Of the divergence, from which one token is worth a place in the first sentence."""


def write_anatomy(anatomy: Anatomy, folder: Path) -> None:
    """Write anatomy.json, positions.csv and anatomy.html into a folder."""
    write_text(folder / "anatomy.json", json_text(json_value(anatomy)))
    write_text(folder / "positions.csv", _positions_text(anatomy))
    write_text(folder / "anatomy.html", anatomy_page(anatomy))


def anatomy_page(anatomy: Anatomy) -> str:
    """Return anatomy.html."""
    return render(
        "anatomy.html",
        anatomy=anatomy,
        sentence=sentence(anatomy),
        headline=_headline(anatomy),
        charts=_charts(anatomy),
        box=charts,
        rates=_rate_rows(anatomy),
        divergences=_divergence_rows(anatomy),
        tokens=[(*map(visible_token, (t.token, t.instead)), t.num, f"{t.mean:.2f}", t.share) for t in anatomy.tokens],
        settings=setting_rows(dict(anatomy.settings)),
    )


def visible_token(token: str) -> str:
    """Return a token as text that shows its blanks: Ġ-like blanks become a middle dot, line feeds an arrow."""
    return printable(token.replace(" ", "\u00b7").replace("\n", "\u21b5").replace("\t", "\u21e5"))


def sentence(anatomy: Anatomy) -> str:
    """Return what was seen, for the top of the page and the terminal."""
    harmful = _of_kind(anatomy.divergences, "harmful")
    early = harmful.early[EARLY[0]] if harmful else None
    if harmful is None or early is None:
        return "No completion to a harmful prompt could be compared: see the notes."
    if early.value is None or not anatomy.tokens:
        return "The context changes no next-token distribution."
    most, horizon = anatomy.tokens[0], anatomy.horizon
    share = f"{percent(early.value)} of what the context changes lies in the first {EARLY[0]} tokens"
    if most.share >= LARGE_SHARE and most.instead != most.token:
        written, instead = visible_token(most.token), visible_token(most.instead)
        share += f", and {percent(most.share)} where the model writes '{written}' and '{instead}' is likelier under it"
    if anatomy.measurement.flip_rate.value is None:
        return f"{share}. No answer is unsafe without the context, so there is nothing to flip."
    if horizon is None:
        return f"{share}. It does not flip {RELIABLE:.0%} of the unsafe answers at any depth."
    where = "from the first token on" if horizon == 0 else f"up to {horizon} tokens into an unsafe answer"
    return f"{share}. It flips at least {RELIABLE:.0%} of the unsafe answers {where}."


def _of_kind(parts: tuple[CompletionDivergence, ...], kind: str) -> CompletionDivergence | None:
    return next((part for part in parts if part.kind == kind), None)


def _headline(anatomy: Anatomy) -> list[tuple[str, str, str]]:
    harmful, after = (_of_kind(p, "harmful") for p in (anatomy.divergences, anatomy.student_divergences))
    boxes = [("flips", *_rate(anatomy.measurement.flip_rate))]
    if harmful:
        boxes += [
            (f"of the divergence in the first {num} tokens", *_estimate(harmful.early[num], is_rate=True))
            for num in EARLY
        ]
        boxes.append(("Delta_safety", *_estimate(harmful.delta_safety)))
    if harmful and after and harmful.total.value and after.total.value is not None:
        left = after.total.value / harmful.total.value
        boxes.append(("of the divergence left after training", percent(left), f"{after.num} completions"))
    return boxes


def _rate(rate: Rate) -> tuple[str, str]:
    return (DASH, "none measured") if rate.value is None else (percent(rate.value), interval(rate))


def _estimate(estimate: Estimate, *, is_rate: bool = False) -> tuple[str, str]:
    if estimate.value is None:
        return DASH, "none measured"
    if is_rate:
        return percent(estimate.value), f"{percent(estimate.low)} to {percent(estimate.high)}"
    return f"{estimate.value:.2f} nats", f"{estimate.low:.2f} to {estimate.high:.2f}"


def _charts(anatomy: Anatomy) -> list[Chart]:
    before = (
        anatomy.divergences,
        "Divergence by position: {} prompts",
        "Of the model without the context from itself under it, behind its own completions. Where it is high is where "
        "the context decides, and what OPSA lowers. Dashed: the 95 % interval.",
    )
    after = (
        anatomy.student_divergences,
        "After training: {} prompts",
        "Of the checkpoint without the context from the model under it, behind the same completions.",
    )
    drawn = [_curve(part, title, hint) for parts, title, hint in (before, after) for part in parts]
    measured = [(float(depth), rate.value) for depth, rate in anatomy.depth if rate.value is not None]
    if len(measured) > 1:
        hint = "Unsafe answers that become safe when the context is added after so many of their tokens are written."
        curve = Series("flipped", measured, "harmful", is_noisy=False)
        axis = ChartAxis("share of unsafe answers", is_rate=True, high=1.0)
        drawn.append(draw("Flips by depth", hint, axis, [curve], (measured[0][0], measured[-1][0]), "token"))
    return [chart for chart in drawn if chart]


def _curve(part: CompletionDivergence, title: str, hint: str) -> Chart | None:
    kept = [p for p in part.by_position if p.num >= MIN_COMPLETIONS and p.position < LAST_POSITION]
    columns = {"mean": [p.mean for p in kept], "low": [p.low for p in kept], "high": [p.high for p in kept]}
    series = [
        Series(
            name,
            [(float(p.position + 1), value) for p, value in zip(kept, values, strict=True)],
            part.kind,
            dashed=name != "mean",
            is_noisy=False,
        )
        for name, values in columns.items()
    ]
    chart = draw(title.format(part.kind), hint, ChartAxis("nats per token"), series, (1.0, float(len(kept))), "token")
    if chart is None:
        return None
    # Of a curve by position the last value says nothing; the highest one is where the context acts.
    lines = [
        replace(line, last=f"at most {max(values):.3g}")
        for line, values in zip(chart.lines, columns.values(), strict=True)
    ]
    return replace(chart, lines=tuple(lines))


def _rate_rows(anatomy: Anatomy) -> list[list[str]]:
    """Return rows of what is measured, under the context, and of the checkpoint without it."""
    sides = [m for m in (anatomy.measurement, anatomy.student_measurement) if m]
    shown: dict[str, Callable[[Measurement], tuple[str, str]]] = {
        "unsafe answers that became safe": lambda side: _rate(side.flip_rate),
        "benign prompts refused beyond those refused before": lambda side: (
            points(side.added_refusals.value),
            f"of {side.added_refusals.n}" if side.added_refusals.n else "",
        ),
        "what benign answers lost (contraction)": lambda side: (
            _estimate(side.contraction, is_rate=True) if side.contraction else (DASH, "")
        ),
    }
    rows = [[name, *(" ".join(figure(side)) for side in sides)] for name, figure in shown.items()]
    for kind in ("refusal", "redirection", "help", "degenerate"):
        rows.append([f"flips by {kind}", *(f"{side.kinds_after.get(kind, 0):,}" for side in sides)])
    return rows


def _divergence_rows(anatomy: Anatomy) -> list[list[str]]:
    rows = []
    for whose, parts in (("the model", anatomy.divergences), ("the checkpoint", anatomy.student_divergences)):
        for part in parts:
            shares = [" · ".join(_estimate(part.early[num], is_rate=True)) for num in EARLY]
            sums = [" · ".join(_estimate(estimate)) for estimate in (part.total, part.delta_safety)]
            rows.append([whose, part.kind, f"{part.num:,}", *sums, *shares])
    return rows


def _positions_text(anatomy: Anatomy) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("side", "kind", "position", "mean_nats", "low", "high", "completions"))
    for side, parts in (("model", anatomy.divergences), ("checkpoint", anatomy.student_divergences)):
        for part in parts:
            for p in part.by_position:
                writer.writerow((side, part.kind, p.position, p.mean, p.low, p.high, p.num))
    return text.getvalue()


CHECK_STATES = {"met": "met", "doubt": "in doubt", "failed": "failed"}
BOXES = ("unsafe without the context", "flips", "net of neutral text", "depth", "memory", "time")
"""Criteria whose figures stand at the top of the page."""


def write_preflight(result: "Preflight", folder: Path) -> None:
    """Write preflight.json and preflight.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "preflight.json", json_text(result.as_dict()))
    write_text(folder / "preflight.html", preflight_page(result))


def preflight_page(result: "Preflight") -> str:
    """Return preflight.html."""
    figures = {check.name: check for check in result.checks}
    split = {name: figures[name].value.partition(" (") for name in BOXES}
    return render(
        "preflight.html",
        result=result,
        headline=[
            (name, value, f"({more}" if more else figures[name].wanted) for name, (value, _, more) in split.items()
        ],
        states=CHECK_STATES,
        source=f"the study {result.figures.study}" if result.figures.study else "the sample",
        settings=setting_rows(dict(result.settings)),
    )
