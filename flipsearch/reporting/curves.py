"""Training curves: what was logged, step by step, as charts with a sentence on what to look for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from flipsearch.core.records import Kind
from flipsearch.core.trainings import LogLine
from flipsearch.reporting.charts import Chart, ChartAxis, Series, draw
from flipsearch.reporting.format import is_drawable

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class CurvePlan:
    """One chart of the training curves."""

    title: str
    hint: str
    axis: ChartAxis
    figures: Mapping[str, str]
    """Name in the log, without the kind -> name in the legend; all but the first are dashed."""
    by_kind: bool = True
    is_noisy: bool = True
    sft_title: str = ""
    """Replaces `title` for supervised methods, whose loss is a likelihood; "" keeps it."""
    sft_hint: str = ""


_NATS = ChartAxis("nats per token", may_be_log=True)
_SHARE = "share of completions"
PLANS = (
    CurvePlan(
        "Loss",
        "The divergence from the teacher, mean over the completion tokens up to the horizon. It should fall fast and "
        "then flatten; jumps that do not settle call for a lower learning rate.",
        _NATS,
        {"loss": "loss"},
        by_kind=False,
        sft_hint="The negative log-likelihood of the answers, mean over all their tokens. It should fall fast and then "
        "flatten; jumps that do not settle call for a lower learning rate.",
    ),
    CurvePlan(
        "Divergence by position",
        "Early: the first 10 tokens; late: after token 30. Where answers turn to comply or to decline, harmful lines "
        "should fall most: early, or late where the model thinks first. If they stay, the context is not being learnt. "
        "Benign lines that rise and stay up are an unwanted change.",
        _NATS,
        {"divergence_early": "early", "divergence_late": "late"},
        sft_title="Negative log-likelihood by position",
        sft_hint="Early: the first 10 tokens; late: after token 30. Where answers turn to comply or to decline, "
        "harmful lines should fall most; lines that near zero mean that answers are being learnt by heart.",
    ),
    CurvePlan(
        "Length",
        "Of what the student writes: the mean, and what 95 % stay within. Lengths that collapse are one stock reply to "
        "everything; lengths that climb to the limit are replies that no longer end.",
        ChartAxis("tokens"),
        {"length_mean": "mean", "length_p95": "95 %"},
        sft_hint="Of the answers that are learnt from: the mean, and what 95 % stay within. They are fixed, so the "
        "lines move only with the batches.",
    ),
    CurvePlan(
        "How completions end",
        "At an end token, or truncated at the limit. If more are truncated, the student rambles or repeats itself, and "
        "learns from texts without an end.",
        ChartAxis(_SHARE, is_rate=True, high=1.0),
        {"eos_rate": "ended", "truncation_rate": "truncated"},
        sft_hint="At an end token, or truncated at the limit: truncated answers teach the student not to end.",
    ),
    CurvePlan(
        "Leakage",
        "Completions that hold 5 words of the context in a row. It should stay at zero: above, the student has begun "
        "to quote a context that it does not see.",
        ChartAxis(_SHARE, is_rate=True, high=0.1),
        {"leakage_rate": ""},
        sft_hint="Answers that hold 5 words of the context in a row. It should be zero: above, the student is taught "
        "to quote a context that it does not see.",
    ),
    CurvePlan(
        "Teacher mass",
        "How much of the teacher's probability lies on the tokens that are compared. Far below 100 %, part of its "
        "distribution is ignored: compare more tokens.",
        ChartAxis("share of probability", is_rate=True, low=None, high=1.0),
        {"teacher_mass": "teacher mass"},
        by_kind=False,
    ),
    CurvePlan(
        "Entropy of the first tokens",
        "How open the student's first 30 tokens are. Near zero, every reply begins alike and sampling shows nothing "
        "new; a steady rise is a student that grows unsure.",
        ChartAxis("nats per token"),
        {"entropy_first": ""},
        sft_hint="How open the student is over the first 30 tokens of the answers. Near zero, it knows them by heart.",
    ),
    CurvePlan(
        "Learning rate",
        "As requested: the warm-up, then the schedule.",
        ChartAxis(""),
        {"learning_rate": "learning rate"},
        by_kind=False,
        is_noisy=False,
    ),
    CurvePlan(
        "Gradient norm",
        "Before clipping. Peaks that become more frequent announce a training that diverges.",
        ChartAxis("", may_be_log=True),
        {"grad_norm": "gradient norm"},
        by_kind=False,
    ),
)


def merge_steps(log: Sequence[LogLine]) -> list[dict[str, float]]:
    """Return one line per step, in the order of the steps; of a step repeated after a resume the last values.

    What is not finite is null in the log, as JSON has no other way to write it; here it is NaN.
    """
    lines: dict[float, dict[str, float]] = {}
    for index, logged in enumerate(log, start=1):
        line = {key: value if isinstance(value, int | float) else math.nan for key, value in logged.items()}
        step = line.get("step", index)
        step = step if is_drawable(step) else index
        lines[step] = {**lines.get(step, {}), **line, "step": step}
    return [lines[step] for step in sorted(lines)]


def training_curves(steps: Sequence[LogLine], is_sft: bool) -> list[Chart]:
    """Return the charts of merged steps; what was never logged has none, nor has a teacher mass of always 1."""
    if not steps:
        return []
    ends = (steps[0]["step"], steps[-1]["step"])
    is_mass_shown = any(not mass >= 1 for _, mass in points_of(steps, "teacher_mass"))
    charts = []
    for plan in PLANS:
        if "teacher_mass" in plan.figures and not is_mass_shown:
            continue
        title, hint = (is_sft and plan.sft_title) or plan.title, (is_sft and plan.sft_hint) or plan.hint
        figures = list(enumerate(plan.figures.items()))
        series = [
            Series(f"{kind} {name}".rstrip(), points_of(steps, f"{key}_{kind}"), kind, dashed=index > 0)
            for kind in KINDS
            for index, (key, name) in figures
        ]
        if not plan.by_kind:
            series = [Series(name, points_of(steps, key), is_noisy=plan.is_noisy) for _, (key, name) in figures]
        charts.append(draw(title, hint, plan.axis, series, ends))
    return [chart for chart in charts if chart]


def points_of(steps: Sequence[LogLine], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of a figure where it was logged."""
    return [(line["step"], line[key]) for line in steps if key in line]
