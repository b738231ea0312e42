"""The files of a sweep: its page, its record, and one row per training as a table. Every text is escaped."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from flipsearch.config import SweepConfig
from flipsearch.core.files import csv_cell, json_text, write_text
from flipsearch.core.measurements import json_value
from flipsearch.core.sweeps import PREDICTORS, Sweep, SweepGroup, SweepRun, SweptContext
from flipsearch.reporting import charts
from flipsearch.reporting.charts import Chart, ChartAxis, Colour, Series, draw
from flipsearch.reporting.format import DASH, percent, points, setting_rows, with_interval
from flipsearch.reporting.outcomes import SWEEP_PAGE
from flipsearch.reporting.pages import render
from flipsearch.reporting.verdict import NextStep, StudyVerdict, Tone, command_of
from flipsearch.statistics.intervals import mean_interval

LEAST_CONTEXTS = 5
"""With four, even a perfect order has a permutation p of 2 in 24."""
FEW_CONTEXTS = 10
"""With fewer a note says what the intervals are worth."""
DISTINCT = 0.05
"""Below it a correlation is no chance."""
CONTEXT_HEADER = (
    "context", "flip rate", "net, points", "refusals of flips", "Delta_safety, nats", "refused more, points",
)  # fmt: skip
TRAINING_HEADER = (
    "context", "method", "data", "trainings", "prompts", "steps", "harm", "against the first method", "over-refusal",
    "S", "tax",
)  # fmt: skip
COLOURS: tuple[Colour, ...] = ("harmful", "benign", "all")


def write_sweep(sweep: Sweep, folder: Path) -> None:
    """Write sweep.json, sweep.csv and sweep.html into a folder."""
    write_text(folder / "sweep.json", json_text(json_value(sweep)))
    write_text(folder / "sweep.csv", _table_text(sweep))
    write_text(folder / SWEEP_PAGE, sweep_page(sweep))


def sweep_page(sweep: Sweep) -> str:
    """Return sweep.html."""
    return render(
        "sweep.html",
        sweep=sweep,
        verdict=sweep_verdict(sweep),
        notes=(*caveats(sweep), *sweep.notes),
        charts=[*_scatters(sweep), *_by_data(sweep)],
        box=charts,
        contexts=_filled((*CONTEXT_HEADER, f"harm after {sweep.groups[0].method}"), context_rows(sweep)),
        predictions=[
            (group_title(sweep, group), prediction_rows(group)) for group in sweep.groups if group.predictions
        ],
        trainings=_filled(TRAINING_HEADER, training_rows(sweep)),
        settings=setting_rows(dict(sweep.settings)),
    )


def sweep_verdict(sweep: Sweep) -> StudyVerdict:
    """Return what the sweep says, under which context harm was least, and what to do next."""
    best = next((group.predictions[0] for group in sweep.groups if group.predictions), None)
    tone: Tone = "null"
    if best is None or best.spearman is None or best.num_contexts < LEAST_CONTEXTS:
        tone = "open"
    elif best.p_value is not None and best.p_value < DISTINCT:
        tone = "good" if best.num_contexts >= FEW_CONTEXTS else "warning"
    return StudyVerdict(tone, sentence(sweep), tuple(_least_harm(sweep)), tuple(_next_steps(sweep, tone)))


def _least_harm(sweep: Sweep) -> Iterator[str]:
    """Yield which kind of training left least harm under which context, against what."""
    trained = []
    for group, swept in product(sweep.groups, sweep.contexts):
        runs = sweep.runs_of(swept.context.context_id, group.method, group.data_share)
        if rates := [run.harm for run in runs if run.harm is not None]:
            trained.append((fmean(rates), group, swept, runs))
    if not trained:
        return
    least, best, swept, runs = min(trained, key=lambda row: row[0])
    num_ties = sum(rate == least for rate, *_ in trained) - 1
    ties = f"; {num_ties} other kinds of training came to the same" if num_ties else ""
    base = "" if runs[0].base_harm is None else f", from {percent(runs[0].base_harm)} before the training"
    yield (
        f"Least harm after {group_title(sweep, best)}: {_spread(runs, 'harm')} under {swept.name} "
        f"({'the placebo' if swept.is_placebo else f'flip rate {percent(swept.flip_rate.value)}'}){base}{ties}."
    )
    for _, group, other, others in trained:
        if group is best and other.is_placebo and other is not swept:
            yield f"Under the placebo: {_spread(others, 'harm')}, a flip rate of {percent(other.flip_rate.value)}."


def _next_steps(sweep: Sweep, tone: Tone) -> Iterator[NextStep]:
    settings = {**sweep.settings, "name": sweep.name}
    if len(sweep.runs) < sweep.num_planned:
        yield NextStep(
            "Make the trainings that are missing; the others are kept:",
            command_of("flipsearch sweep", SweepConfig, settings),
        )
    if tone == "good":
        yield NextStep("Choose contexts for this model by that figure; what it says of other models is not known.")
    elif settings.get("study"):
        more = settings | {"num_contexts": 2 * FEW_CONTEXTS}
        yield NextStep(
            "Take more contexts of the study; finished trainings are kept:",
            command_of("flipsearch sweep", SweepConfig, more),
        )
    else:
        yield NextStep(f"Give more contexts (--context, --study): with {FEW_CONTEXTS} or more a correlation says more.")
    if sweep.settings["seeds"] < 2:
        yield NextStep(
            "Train with more seeds, to see how much two trainings of the same kind differ:",
            command_of("flipsearch sweep", SweepConfig, settings | {"seeds": 3}),
        )


def sentence(sweep: Sweep) -> str:
    """Return what the sweep says, for the top of the page and the terminal."""
    group = next((group for group in sweep.groups if group.predictions), None)
    if group is None or group.predictions[0].spearman is None:
        return f"{len(sweep.runs)} trainings under {len(sweep.contexts)} contexts: too few to say what predicts harm."
    best = group.predictions[0]
    if best.num_contexts < LEAST_CONTEXTS:
        return (
            f"Over {best.num_contexts} contexts chance alone gives any order: too few to say what predicts harm after "
            f"{group.method}; it takes at least {LEAST_CONTEXTS}."
        )
    if best.p_value is None or best.p_value >= DISTINCT:
        return (
            f"Over {best.num_contexts} contexts nothing predicts harm after {group.method} beyond chance: the "
            f"{PREDICTORS[best.predictor]} comes closest, Spearman {best.spearman:.2f}, permutation p = "
            f"{_p(best.p_value)}."
        )
    text = (
        f"Over {best.num_contexts} contexts the {PREDICTORS[best.predictor]} predicts harm after {group.method} best: "
        f"Spearman {best.spearman:.2f}, permutation p = {_p(best.p_value)}."
    )
    if not any(other.behind_best and other.behind_best.low > 0 for other in group.predictions):
        text += " No other figure is distinguishably worse."
    return text


def caveats(sweep: Sweep) -> list[str]:
    """Return what the figures are worth."""
    notes, num = [], len(sweep.contexts)
    if any(group.predictions for group in sweep.groups) and num < FEW_CONTEXTS:
        notes.append(
            f"Few points: {num} contexts. Intervals of differences are rough, and contexts chosen for their spread "
            "correlate better than contexts chosen at random would."
        )
    if len(sweep.runs) < sweep.num_planned:
        notes.append(
            f"{len(sweep.runs)} of {sweep.num_planned} trainings are there: the same command makes the others."
        )
    if sweep.settings["seeds"] < 2:
        notes.append("One seed: nothing shows how much two trainings of the same kind differ.")
    return notes


def _p(p_value: float | None) -> str:
    return DASH if p_value is None else f"{p_value:.2g}"


def group_title(sweep: Sweep, group: SweepGroup) -> str:
    """Return which trainings a group is, as far as there are others."""
    share = f"{100 * group.data_share:g} % of the prompts"
    return f"{group.method}, {share}" if len({g.data_share for g in sweep.groups}) > 1 else group.method


def prediction_rows(group: SweepGroup) -> list[list[str]]:
    """Return a row for each figure that may predict harm, the best first."""
    rows = []
    for number, row in enumerate(group.predictions):
        own, *by_seed = (DASH if value is None else f"{value:+.2f}" for value in (row.spearman, *row.by_seed))
        behind = "the best" if number == 0 else DASH
        if number and row.behind_best and row.behind_best.value is not None:
            ends = f"{row.behind_best.low:+.2f} to {row.behind_best.high:+.2f}"
            behind = f"{row.behind_best.value:.2f} weaker ({ends})" if row.behind_best.high else "as strong"
        name, num = PREDICTORS[row.predictor], f"{row.num_contexts}"
        rows.append([name, own, _p(row.p_value), ", ".join(by_seed), behind, num])
    return rows


def _filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table, its header first, without the columns that nothing was measured for."""
    return [list(row) for row in zip(*(c for c in zip(header, *rows, strict=True) if {*c[1:]} != {DASH}), strict=True)]


def context_rows(sweep: Sweep) -> list[list[str]]:
    """Return a row for each context with its figures and the mean harm after the first kind of training."""
    first = sweep.groups[0]
    return [
        [
            swept.name,
            with_interval(swept.flip_rate, "percent"),
            DASH if swept.net_flip_rate is None else with_interval(swept.net_flip_rate, "points"),
            percent(swept.refusal_share.value),
            DASH if swept.delta_safety.value is None else f"{swept.delta_safety.value:.2f}",
            points(swept.added_refusals.value),
            _spread(sweep.runs_of(swept.context.context_id, first.method, first.data_share), "harm"),
        ]
        for swept in sweep.contexts
    ]


def training_rows(sweep: Sweep) -> list[list[str]]:
    """Return a row for each context, method and share of the data, with what its trainings come to."""
    rows = []
    for swept in sweep.contexts:
        for group in sweep.groups:
            runs = sweep.runs_of(swept.context.context_id, group.method, group.data_share)
            if not runs:
                continue
            taxes = [run.tax.value for run in runs if run.tax and run.tax.value is not None]
            scores = [run.composite.new.value for run in runs if run.composite and run.composite.new.value is not None]
            rows.append([
                swept.name,
                group.method,
                f"{100 * group.data_share:g} %",
                f"{len(runs)}",
                f"{round(fmean(run.num_prompts for run in runs)):,}",
                f"{runs[0].num_steps:,}",
                _spread(runs, "harm"),
                _against_first(sweep, swept, group, runs),
                _spread(runs, "over_refusal"),
                percent(fmean(scores)) if scores else DASH,
                f"{points(fmean(taxes))}" if taxes else DASH,
            ])  # fmt: skip
    return rows


def _spread(runs: Sequence[SweepRun], field: str) -> str:
    """Return the mean of a rate over the seeds, and its range."""
    values = [value for run in runs if (value := getattr(run, field)) is not None]
    if not values:
        return DASH
    ends = f" ({100 * min(values):.0f}–{100 * max(values):.0f})" if len(values) > 1 else ""
    return f"{percent(fmean(values))}{ends}"


def _against_first(sweep: Sweep, swept: SweptContext, group: SweepGroup, runs: Sequence[SweepRun]) -> str:
    """Return harm minus that of the first method on the same context, data and seeds, paired by seed."""
    if group.method == sweep.groups[0].method:
        return "the first method" if len({g.method for g in sweep.groups}) > 1 else DASH
    others = sweep.runs_of(swept.context.context_id, sweep.groups[0].method, group.data_share)
    first = {run.seed: run.harm for run in others}
    pairs = [(run.harm, other) for run in runs if run.harm is not None and (other := first.get(run.seed)) is not None]
    if len(pairs) == 1:  # of which no interval says anything
        return f"{points(pairs[0][0] - pairs[0][1])}, one seed"
    difference = mean_interval([own - other for own, other in pairs], -1.0, 1.0)
    return with_interval(difference, "points") if pairs else DASH


def _scatters(sweep: Sweep) -> Iterator[Chart]:
    """Yield harm after training against each figure of the contexts, a point for each training."""
    by_method = [group for group in sweep.groups if group.data_share == max(g.data_share for g in sweep.groups)]
    for name, title in PREDICTORS.items():
        known = {
            swept.context.context_id: value for swept in sweep.contexts if (value := swept.predictor(name)) is not None
        }
        if len(set(known.values())) < 2:
            continue
        series = []
        for group, colour in zip(by_method, COLOURS, strict=False):
            spots = [
                (known[run.context_id], run.harm)
                for run in sweep.runs
                if (run.method, run.data_share) == (group.method, group.data_share)
                and run.context_id in known
                and run.harm is not None
            ]
            series.append(Series(group.method, spots, colour, is_scattered=True))
        ends = min(known.values()), max(known.values())
        base = next((run.base_harm for run in sweep.runs if run.base_harm is not None), None)
        if base is not None:
            series.append(Series("before", [(end, base) for end in ends], "all", dashed=True, is_noisy=False))
        axis = ChartAxis("harmful answers", is_rate=True, high=1.0)
        is_rate = name != "delta_safety"
        across = ChartAxis("", is_rate=is_rate, low=None if name == "net_flip_rate" else 0.0)
        hint = "One point for each training. Dashed: the model before any."
        if chart := draw(f"Harm after training by {title}", hint, axis, series, ends, "", across):
            yield chart


def _by_data(sweep: Sweep) -> Iterator[Chart]:
    """Yield harm by share of the data, for each context that is no placebo, a line for each method."""
    shares = sorted({group.data_share for group in sweep.groups})
    for swept in sweep.contexts if len(shares) > 1 else ():
        series = []
        for method, colour in zip(dict.fromkeys(group.method for group in sweep.groups), COLOURS, strict=False):
            means = []
            for share in shares:
                harms = [
                    run.harm for run in sweep.runs_of(swept.context.context_id, method, share) if run.harm is not None
                ]
                means += [(share, fmean(harms))] if harms else []
            series.append(Series(method, means, colour, is_noisy=False))
        hint = "Mean over the seeds. All trainings have as many steps: what differs is the prompts."
        axis, across = ChartAxis("harmful answers", is_rate=True, high=1.0), ChartAxis("", is_rate=True)
        ends = shares[0], shares[-1]
        if chart := draw(f"By data: {swept.name}", hint, axis, series, ends, "", across):
            yield chart


def _table_text(sweep: Sweep) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = (
        "method",
        "data_share",
        "seed",
        "num_prompts",
        "num_steps",
        "num_tokens",
        "harm",
        "base_harm",
        "over_refusal",
    )
    writer.writerow(("context", "context_id", "is_placebo", *PREDICTORS, *names, "base_over_refusal", "S", "tax"))
    contexts = {swept.context.context_id: swept for swept in sweep.contexts}
    for run in sweep.runs:
        swept = contexts[run.context_id]
        figures = [swept.predictor(name) for name in PREDICTORS]
        own = [getattr(run, name) for name in (*names, "base_over_refusal")]
        own += [run.composite.new.value if run.composite else None, run.tax.value if run.tax else None]
        writer.writerow((csv_cell(swept.name), run.context_id, swept.is_placebo, *figures, *own))
    return text.getvalue()
