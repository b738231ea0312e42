"""The pictures of a study as plain geometry, which templates/figures.html draws: each shows one thing and says it too.

    Intervals     finalists and placebos: confirmed flip rates with their intervals
    Tradeoff      flips against added refusals, and the contexts that no other beats in both
    Course        flip rates in the order in which contexts were proposed, and the best so far

Knows records and names; no HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.core.measurements import Rate
from flipsearch.core.studies import Study, Trial
from flipsearch.reporting.charts import ChartAxis, Scale, Tick, step_scale, value_scale
from flipsearch.reporting.format import percent, points
from flipsearch.reporting.verdict import control_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 40, 350, 12, 198
ROW_HEIGHT, MOST_SHOWN = 30, 10
SHARE = ChartAxis("", is_rate=True, high=1.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value in a picture, with the interval along each axis where it has one."""

    label: str
    style: str
    """winner, finalist, placebo, or the state of a trial."""
    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture ready to be drawn."""

    title: str
    caption: str
    height: float
    marks: tuple[Mark, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...] = ()
    x_label: str = ""
    y_label: str = ""
    path: str = ""
    """A line: the Pareto front, or the best so far."""
    rule: float | None = None
    """x of a vertical line: the control's value, or the cap."""
    rule_label: str = ""

    @property
    def dots(self) -> dict[str, str]:
        """Style -> the marks without an interval as one path of dots: a thousand elements would be slow."""
        paths: dict[str, str] = {}
        for mark in self.marks:
            if not mark.across:
                paths[mark.style] = f"{paths.get(mark.style, '')}M{mark.x:.1f} {mark.y:.1f}h0"
        return paths


def figures_of(study: Study, names: dict[int, str]) -> list[Figure]:
    """Return the pictures that tell a reader something in this study."""
    made = (_intervals(study, names), _tradeoff(study, names), _search_curve(study))
    return [figure for figure in made if figure]


def _style(study: Study, trial: Trial) -> str:
    if study.winner and study.winner.number == trial.number:
        return "winner" if study.is_confirmed else "best"
    return "placebo" if trial.role == "placebo" else "finalist" if trial.confirm else trial.state


def _intervals(study: Study, names: dict[int, str]) -> Figure | None:
    """Return the flip rates of finalists and placebos, or of all scored contexts, each a row."""
    confirmed = [trial for trial in study.trials if trial.confirm]
    arms, placebos = (
        [trial for trial in study.trials if (trial.role == "placebo") is wanted] for wanted in (False, True)
    )
    shown = [trial for trial in confirmed or [*arms[:MOST_SHOWN], *placebos] if trial.final.flip_rate.n]
    if len(shown) < 2:
        return None
    scale = value_scale(SHARE, [0.0, 1.0], LEFT / 2, RIGHT)
    marks = []
    for index, trial in enumerate(shown):
        rate = trial.final.flip_rate
        words = f"{percent(rate.value)} ({100 * rate.low:.0f}–{100 * rate.high:.0f})"
        ends = (scale.place(rate.low), scale.place(rate.high))
        place = TOP + ROW_HEIGHT * index + 20
        marks.append(
            Mark(names[trial.number], _style(study, trial), scale.place(rate.value or 0), place, ends, words=words)
        )
    best = study.winner or study.trials[0]
    control = control_of(study, best)
    caption = (
        "Share of the unsafe answers that become safe, with 95 % intervals"
        f"{' on the sealed prompts' if confirmed else ''}. Intervals that overlap a grey one say little. "
        "Without a context the share is 0 by definition."
    )
    return Figure(
        title="Flip rates and their uncertainty",
        caption=caption,
        height=TOP + ROW_HEIGHT * len(shown) + 30,
        marks=tuple(marks),
        across=scale.ticks,
        rule=scale.place(control.final.flip_rate.value or 0.0) if control else None,
        rule_label="best control" if control else "",
    )


def _tradeoff(study: Study, names: dict[int, str]) -> Figure | None:
    """Return flips against refusals of benign prompts: confirmed where they are, else of those that saw all prompts."""
    shown = [trial for trial in study.trials if trial.state == "complete" and trial.final.flip_rate.n]
    shown = [trial for trial in shown if trial.final.added_refusals.n]
    if len(shown) < 2:
        return None
    refusals = {trial.number: trial.final.added_refusals.value or 0.0 for trial in shown}
    cap = study.refusal_cap.most if study.refusal_cap and study.refusal_cap.counts == "added" else None
    ends = [*refusals.values(), 0.0, 0.05, *([cap] if cap is not None else [])]
    x = value_scale(ChartAxis("", is_rate=True, low=None), ends, LEFT, RIGHT)
    y = value_scale(SHARE, [trial.final.flip_rate.value or 0.0 for trial in shown], BOTTOM, TOP)

    def along(rate: Rate, scale: Scale, low: float, high: float) -> tuple[float, float]:
        first, last = sorted((scale.place(rate.low), scale.place(rate.high)))
        return max(low, first), min(high, last)

    marks = []
    for trial in reversed(shown):
        flips, added = trial.final.flip_rate, trial.final.added_refusals
        across = along(added, x, LEFT, RIGHT) if trial.confirm else None
        up = along(flips, y, TOP, BOTTOM) if trial.confirm else None
        words = f"{names[trial.number]}: {percent(flips.value)} flipped, {points(added.value)} points more refused"
        place = (x.place(refusals[trial.number]), y.place(flips.value or 0.0))
        marks.append(Mark(names[trial.number], _style(study, trial), place[0], place[1], across, up, words))
    arms = [trial for trial in shown if trial.role == "arm"]
    front = _front([(refusals[trial.number], trial.final.flip_rate.value or 0.0) for trial in arms])
    path = (
        "M" + "L".join(f"{x.place(right):.1f} {y.place(high):.1f}" for right, high in front) if len(front) > 1 else ""
    )
    return Figure(
        title="Flips against benign prompts refused",
        caption="Up and left is better. The line joins the contexts that no other beats in both; crosses are 95 % "
        "intervals of those that were confirmed."
        + (" Right of the dashed line too many benign prompts are refused to win." if cap is not None else ""),
        height=HEIGHT,
        marks=tuple(marks),
        across=x.ticks,
        up=y.ticks,
        x_label="benign prompts refused, beyond those refused without a context",
        y_label="flip rate",
        path=path,
        rule=x.place(cap) if cap is not None else None,
        rule_label="cap" if cap is not None else "",
    )


def _front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (refusals, flips) that no other beats in both, from few refusals to many."""
    front: list[tuple[float, float]] = []
    for refusals, flips in sorted(set(places), key=lambda place: (place[0], -place[1])):
        if not front or flips > front[-1][1]:
            front.append((refusals, flips))
    return front


def _search_curve(study: Study) -> Figure | None:
    """Return the flip rates on the search prompts in the order of proposal, with the best so far."""
    arms = sorted((trial for trial in study.trials if trial.role == "arm"), key=lambda trial: trial.number)
    arms = [trial for trial in arms if trial.search.flip_rate.n]
    if len(arms) < 8 or not (study.winner or study.unfinished):
        return None
    x = step_scale(1, len(arms), LEFT, RIGHT)
    y = value_scale(SHARE, [trial.search.flip_rate.value or 0.0 for trial in arms], BOTTOM, TOP)
    marks, best, path = [], 0.0, ""
    for index, trial in enumerate(arms, start=1):
        value = trial.search.flip_rate.value or 0.0
        place = (x.place(index), y.place(value))
        words = f"{index}: {percent(value)} of {trial.search.flip_rate.n}, {trial.state}"
        marks.append(Mark("", _style(study, trial), *place, words=words))
        if trial.state == "complete" and not study.is_over_any_cap(trial) and value > best:
            path += f"{f'H{place[0]:.1f}V' if path else f'M{place[0]:.1f} '}{place[1]:.1f}"
            best = value
    num_early = sum(trial.state in ("running", "stopped", "pruned") for trial in arms)
    return Figure(
        title="Course of the search",
        caption=f"Flip rates on the search prompts, in the order in which {len(arms):,} contexts were proposed. "
        f"{'The line is the best so far that saw all prompts within the caps; t' if path else 'T'}he rates of "
        f"{num_early:,} faint ones rest on fewer prompts.",
        height=HEIGHT,
        marks=tuple(marks),
        across=x.ticks,
        up=y.ticks,
        x_label="contexts proposed",
        y_label="flip rate, search",
        path=f"{path}H{RIGHT}" if path else "",
    )
