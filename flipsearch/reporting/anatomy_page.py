"""The files of an anatomy and of a preflight, which look at a context and a model; every text is escaped.

An anatomy has its page, its record and the divergence by position as a table; a preflight its page and its record.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flipsearch.config import SearchConfig, TrainConfig
from flipsearch.core.files import json_text, printable, write_text
from flipsearch.core.measurements import Estimate, Measurement, Rate, json_value
from flipsearch.core.records import AnswerKind
from flipsearch.core.settings import typed_path
from flipsearch.core.trainings import EARLY, RELIABLE, Anatomy, CompletionDivergence, PositionDivergence
from flipsearch.reporting import charts
from flipsearch.reporting.charts import Chart, ChartAxis, Series, draw
from flipsearch.reporting.format import DASH, interval, percent, points, setting_rows
from flipsearch.reporting.pages import render
from flipsearch.reporting.verdict import NextStep, StudyVerdict, Tone, command_of

if TYPE_CHECKING:  # which loads torch
    from flipsearch.training.preflight import Preflight

MIN_COMPLETIONS = 5
"""A position that fewer completions reach is not drawn."""
LAST_POSITION = 64
LEAST_SHARE = 0.001
"""Of the divergence, from which a token is shown."""
LARGE_SHARE, MOST_OF_IT = 0.2, 0.5
"""Of the divergence: from which one token is worth a sentence, and from which some tokens are where a context acts."""
SAFE = f"{100 * RELIABLE:.0f} % of the unsafe answers"
SHARED_SETTINGS = (
    *("model", "prompts", "harmful", "benign", "judge"),
    *("thinking", "contexts", "device", "dtype", "reports"),
)
"""Of an anatomy, which the commands that come next take too."""


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
        verdict=anatomy_verdict(anatomy),
        headline=_headline(anatomy),
        charts=_charts(anatomy),
        box=charts,
        rates=_rate_rows(anatomy),
        divergences=_divergence_rows(anatomy),
        tokens=[
            (*map(visible_token, (token.token, token.instead)), token.num, f"{token.mean:.2f}", token.share)
            for token in anatomy.tokens
            if token.share >= LEAST_SHARE
        ],
        settings=setting_rows(dict(anatomy.settings)),
    )


def visible_token(token: str) -> str:
    """Return a token as text that shows its blanks: Ġ-like blanks become a middle dot, line feeds an arrow."""
    return printable(token.replace(" ", "\u00b7").replace("\n", "\u21b5").replace("\t", "\u21e5"))


def anatomy_verdict(anatomy: Anatomy) -> StudyVerdict:
    """Return where in an answer the context acts, what that means for a training, and what to do next."""
    harmful = _of_kind(anatomy.divergences, "harmful")
    shares = {num: harmful.early[num].value for num in EARLY} if harmful else {}
    first, early = (shares.get(num) for num in EARLY)
    tone: Tone = "null"
    if not shares:
        sentence = "No completion to a harmful prompt could be compared: see the notes."
    elif first is None or early is None or not anatomy.tokens:
        sentence = "The context changes no next-token distribution: there is nothing to learn from it."
    else:
        tone = "open" if anatomy.horizon is not None else "warning"
        inside = f"{percent(early)} of what it changes is in the first {EARLY[1]} tokens"
        if first >= MOST_OF_IT:
            inside = f"{percent(first)} of what it changes is in the first {EARLY[0]} tokens"
        where = "at the start of" if first >= MOST_OF_IT else "early in" if early >= MOST_OF_IT else "throughout"
        learns = f"learns most of it from the first tokens alone (--horizon {EARLY[1]} keeps {percent(early)})"
        if early < MOST_OF_IT:
            learns = "needs whole answers: set no --horizon"
        means = f"A training {learns}"
        if anatomy.measurement.flip_rate.value is None:
            tone, means = "null", "No answer is unsafe without the context, so there is nothing to flip"
        elif anatomy.horizon is None:
            means = f"It is a weak teacher: it makes fewer than {SAFE} safe"
        sentence = f"The context acts {where} an answer: {inside}. {means}."
    return StudyVerdict(tone, sentence, tuple(_basis(anatomy)), tuple(_next_steps(anatomy, tone)))


def _basis(anatomy: Anatomy) -> Iterator[str]:
    flips, horizon = anatomy.measurement.flip_rate, anatomy.horizon
    if flips.value is not None:
        yield f"Under it {percent(flips.value)} of the unsafe answers become safe: {interval(flips)}."
        deeper = next((depth for depth, _ in anatomy.depth if horizon is not None and depth > horizon), None)
        if horizon == 0 and deeper:
            yield f"A weak teacher behind an unsafe beginning: {deeper} tokens in, it makes fewer than {SAFE} safe."
        elif horizon:
            rate = dict(anatomy.depth)[horizon]
            yield f"Even {horizon} tokens into an unsafe answer it makes {percent(rate.value)} safe: {interval(rate)}."
    for token in anatomy.tokens[:1]:
        if token.share >= LARGE_SHARE and token.instead != token.token:
            written, instead = visible_token(token.token), visible_token(token.instead)
            share = f"{percent(token.share)} of what it changes"
            yield f"{share} is where the model writes '{written}'; under the context '{instead}' is likelier."
    left, trained = anatomy.share_left, anatomy.student_measurement
    if anatomy.student and left is not None:
        yield f"After training {percent(left)} of that is left in {anatomy.student}; 0 % would be all learnt."
    if trained and trained.flip_rate.value is not None:
        rate = trained.flip_rate
        yield f"Without the context it now turns {percent(rate.value)} of the unsafe answers safe: {interval(rate)}."


def _next_steps(anatomy: Anatomy, tone: Tone) -> Iterator[NextStep]:
    settings = dict(anatomy.settings)
    if anatomy.student:
        command = f"flipsearch evaluate {typed_path(anatomy.student)}"
        yield NextStep("Compare the checkpoint with its base on prompts that it was not trained on:", command)
        return
    if anatomy.measurement.flip_rate.value is None:
        yield NextStep("Give prompts that the model answers unsafely (--harmful, --prompts).")
    elif tone != "open":
        search = command_of("flipsearch search", SearchConfig, {key: settings[key] for key in SHARED_SETTINGS})
        yield NextStep("Search for a context that flips more of the answers:", search)
    else:
        train = {key: settings[key] for key in ("context", *SHARED_SETTINGS)}
        preflight = command_of("flipsearch preflight", TrainConfig, train | {"context": [train["context"]]})
        yield NextStep("Is a training on it worth its start?", preflight)
        yield NextStep("After a training: anatomy with --student and its folder shows what is left to learn.")


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
        value, ends = _estimate(harmful.delta_safety)
        peak = _peak(harmful)
        if peak and peak.position >= anatomy.critical_tokens:
            ends += f"; small is not weak: the context acts after these, most at token {peak.position + 1}"
        boxes.append((f"Delta_safety: the first {anatomy.critical_tokens} tokens alone", value, ends))
    if after and anatomy.share_left is not None:
        boxes.append(("of the divergence left after training", percent(anatomy.share_left), f"{after.num} completions"))
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


def _drawn(part: CompletionDivergence) -> list[PositionDivergence]:
    return [p for p in part.by_position if p.num >= MIN_COMPLETIONS and p.position < LAST_POSITION]


def _peak(part: CompletionDivergence) -> PositionDivergence | None:
    """Return the position where the context changes most, of those that are drawn."""
    return max(_drawn(part), key=lambda p: p.mean, default=None)


def _curve(part: CompletionDivergence, title: str, hint: str) -> Chart | None:
    kept = _drawn(part)
    columns = {"mean": [p.mean for p in kept], "low (95 %)": [p.low for p in kept], "high": [p.high for p in kept]}
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
    peak = _peak(part)
    if chart is None or peak is None:
        return None
    # Of a curve by position the last value says nothing; the highest one is where the context acts.
    lasts = (f"peak {peak.mean:.3g} at token {peak.position + 1}", "", "")
    lines = [replace(line, last=last) for line, last in zip(chart.lines, lasts, strict=True)]
    return replace(chart, lines=tuple(lines))


def _rate_rows(anatomy: Anatomy) -> list[list[str]]:
    """Return rows of what is measured, under the context, and of the checkpoint without it."""
    sides = [m for m in (anatomy.measurement, anatomy.student_measurement) if m]
    shown: dict[str, Callable[[Measurement], tuple[str, str]]] = {
        "unsafe answers that became safe": lambda side: _rate(side.flip_rate),
        "benign prompts refused beyond those refused before": lambda side: (
            (f"{points(side.added_refusals.value)} points", f"{side.added_refusals.n} prompts")
            if side.added_refusals.n
            else (DASH, "none measured")
        ),
        "what benign answers lost (contraction)": lambda side: (
            _estimate(side.contraction, is_rate=True) if side.contraction else (DASH, "")
        ),
    }
    rows = [[name, *(" · ".join(filter(None, figure(side))) for side in sides)] for name, figure in shown.items()]
    names: dict[AnswerKind, str] = {
        "refusal": "refusals",
        "redirection": "redirections",
        "help": "help",
        "degenerate": "degenerate: no flips",
    }
    for kind, name in names.items():
        rows.append([f"unsafe answers that became {name}", *(f"{side.kinds_after.get(kind, 0):,}" for side in sides)])
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


def write_preflight(result: "Preflight", folder: Path, command: str) -> None:
    """Write preflight.json and preflight.html into a folder; `command` starts the training."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "preflight.json", json_text(result.as_dict()))
    write_text(folder / "preflight.html", preflight_page(result, command))


def preflight_verdict(result: "Preflight", command: str) -> StudyVerdict:
    """Return whether to train, why not, and what to do next; `command` starts the training."""
    tones: dict[str, Tone] = {"go": "good", "think again": "warning", "no": "null"}
    steps = [NextStep(f"{check.name.capitalize()}: {check.todo}") for check in result.checks if check.todo]
    if result.verdict != "no":
        steps.append(NextStep("Start the training:" if not steps else "Or train all the same:", command))
    num_met = sum(check.state == "met" for check in result.checks)
    cost = result.cost
    basis = [
        f"{num_met} of {len(result.checks)} criteria are met.",
        f"Steps of the training: {cost.num_steps:,}; tokens in its rollouts: {cost.tokens.rollouts:,}.",
    ]
    if result.verdict != "go":
        basis.append("The command exits with 1, as for every verdict but go, so that a script stops here.")
    return StudyVerdict(tones[result.verdict], result.sentence, tuple(basis), tuple(steps))


def preflight_page(result: "Preflight", command: str) -> str:
    """Return preflight.html."""
    figures = {check.name: check for check in result.checks}
    split = {name: re.split(r" (?=\(|after )|, ", figures[name].value, maxsplit=1) for name in BOXES}
    return render(
        "preflight.html",
        result=result,
        verdict=preflight_verdict(result, command),
        headline=[
            (name, value, *(more or [f"wanted: {figures[name].wanted}"])) for name, (value, *more) in split.items()
        ],
        states=CHECK_STATES,
        source=f"the study {result.figures.study}" if result.figures.study else "the sample",
        settings=setting_rows(dict(result.settings)),
    )
