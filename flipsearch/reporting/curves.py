"""The course of a training: what was logged, step by step, as charts with a sentence on what to look for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from flipsearch.core.records import Kind
from flipsearch.core.trainings import LogLine
from flipsearch.reporting.axes import Axis, is_drawable
from flipsearch.reporting.charts import Chart, Series, draw

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class CurvePlan:
    """A chart to be drawn of what was logged."""

    title: str
    hint: str
    axis: Axis
    figures: Mapping[str, str]
    """Name in the log without the kind -> name in the legend; from the second on dashed."""
    by_kind: bool = True
    is_noisy: bool = True
    sft_title: str = ""
    """In the place of `title` where no teacher is asked, and the loss is a likelihood; "" is the same."""
    sft_hint: str = ""


_NATS = Axis("nats a token", may_be_log=True)
_SHARE = "share of completions"
PLANS = (
    CurvePlan(
        "Loss",
        "The divergence from the teacher, mean over all completion tokens. It should fall fast and then flatten; "
        "jumps that do not settle ask for a lower learning rate.",
        _NATS,
        {"loss": "loss"},
        by_kind=False,
        sft_hint="The negative log-likelihood of the answers, mean over all their tokens. It should fall fast and then "
        "flatten; jumps that do not settle ask for a lower learning rate.",
    ),
    CurvePlan(
        "Divergence by place",
        "Early: the first 10 tokens; late: after token 30. Where answers turn to comply or to decline, harmful lines "
        "should fall most: early, or late where the model thinks first. If they stay, the context is not being learnt. "
        "Benign lines that rise and stay up are a change that nobody asked for.",
        _NATS,
        {"divergence_early": "early", "divergence_late": "late"},
        sft_title="Negative log-likelihood by place",
        sft_hint="Early: the first 10 tokens; late: after token 30. Where answers turn to comply or to decline, "
        "harmful lines should fall most; lines that near zero mean that answers are being learnt by heart.",
    ),
    CurvePlan(
        "Length",
        "Of what the student writes: the mean, and what 95 % stay within. Lengths that collapse are one stock reply to "
        "everything; lengths that climb to the limit are replies that no longer end.",
        Axis("tokens"),
        {"length_mean": "mean", "length_p95": "95 %"},
        sft_hint="Of the answers that are learnt from: the mean, and what 95 % stay within. They are fixed, so the "
        "lines move only with the batches.",
    ),
    CurvePlan(
        "How completions end",
        "By themselves, or cut at the limit. Should more be cut, the student rambles or repeats itself, and learns "
        "from texts without an end.",
        Axis(_SHARE, is_rate=True, high=1.0),
        {"eos_rate": "ended", "truncation_rate": "pruned"},
        sft_hint="By themselves, or cut at the limit: answers that were cut teach the student not to end.",
    ),
    CurvePlan(
        "Leakage",
        "Completions that hold 5 words of the context in a row. It should stay at zero: above, the student has begun "
        "to quote a context that it does not see.",
        Axis(_SHARE, is_rate=True, high=0.1),
        {"leakage_rate": ""},
        sft_hint="Answers that hold 5 words of the context in a row. It should be zero: above, the student is taught "
        "to quote a context that it does not see.",
    ),
    CurvePlan(
        "Teacher mass",
        "How much of the teacher's probability lies on the tokens that are compared. Far below 100 %, part of what it "
        "says is not heard: compare more tokens.",
        Axis("share of probability", is_rate=True, low=None, high=1.0),
        {"teacher_mass": "teacher mass"},
        by_kind=False,
    ),
    CurvePlan(
        "Entropy of the first tokens",
        "How open the student's first 30 tokens are. Near zero, every reply begins alike and sampling shows nothing "
        "new; a steady rise is a student that grows unsure.",
        Axis("nats a token"),
        {"entropy_first": ""},
        sft_hint="How open the student is over the first 30 tokens of the answers. Near zero, it knows them by heart.",
    ),
    CurvePlan(
        "Learning rate",
        "As it was asked for: the warm-up, then the schedule.",
        Axis(""),
        {"learning_rate": "learning rate"},
        by_kind=False,
        is_noisy=False,
    ),
    CurvePlan(
        "Gradient norm",
        "Before clipping. Peaks that come more and more often announce a training that breaks.",
        Axis("", may_be_log=True),
        {"grad_norm": "gradient norm"},
        by_kind=False,
    ),
)


def merged(log: Sequence[LogLine]) -> list[dict[str, float]]:
    """Return one line a step, in the order of the steps; of a step done again after a resume what came last."""
    found: dict[float, dict[str, float]] = {}
    for index, line in enumerate(log, start=1):
        known = {key: _figure(value) for key, value in line.items()}
        step = known.get("step", index)
        step = step if is_drawable(step) else index
        found[step] = {**found.get(step, {}), **known, "step": step}
    return [found[step] for step in sorted(found)]


def _figure(value: object) -> float:
    """Return a figure of the log; what is not finite is null there, as JSON knows no other word for it."""
    return value if isinstance(value, int | float) else math.nan


def course(steps: Sequence[LogLine], is_sft: bool) -> list[Chart]:
    """Return the charts of `merged` lines; what was never logged has none."""
    if not steps:
        return []
    ends = (steps[0]["step"], steps[-1]["step"])
    masses = [value for _, value in points(steps, "teacher_mass")]
    plans = [plan for plan in PLANS if "teacher_mass" not in plan.figures or any(not mass >= 1 for mass in masses)]
    drawn = (
        draw(
            (is_sft and plan.sft_title) or plan.title,
            (is_sft and plan.sft_hint) or plan.hint,
            plan.axis,
            _series(plan, steps),
            ends,
        )
        for plan in plans
    )
    return [chart for chart in drawn if chart]


def _series(plan: CurvePlan, steps: Sequence[LogLine]) -> list[Series]:
    if not plan.by_kind:
        return [Series(name, points(steps, key), is_noisy=plan.is_noisy) for key, name in plan.figures.items()]
    return [
        Series(f"{kind} {name}".rstrip(), points(steps, f"{key}_{kind}"), kind, dashed=index > 0)
        for kind in KINDS
        for index, (key, name) in enumerate(plan.figures.items())
    ]


def points(steps: Sequence[LogLine], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of a figure where it was logged."""
    return [(line["step"], line[key]) for line in steps if key in line]
