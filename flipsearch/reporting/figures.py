"""The pictures of a study as plain geometry, which templates/figures.html draws: each shows one thing and says it too.

    Intervals     finalists and placebos: confirmed flip rates with their intervals
    Tradeoff      flips against added refusals, and the contexts that no other beats in both
    Course        flip rates in the order in which contexts were proposed, and the best so far
    Axes          mean flip rates of the values that templates were filled in with
    Ancestry      what the winner was made of, or the finalists

Knows records and names; no HTML.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flipsearch.core.measurements import Rate
from flipsearch.core.studies import Study, Trial
from flipsearch.reporting.charts import ChartAxis, Scale, Tick, step_scale, value_scale
from flipsearch.reporting.format import percent, points
from flipsearch.reporting.verdict import placebo_of
from flipsearch.statistics.intervals import mean_interval

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 40, 350, 12, 198
ROW_HEIGHT, TREE_HEIGHT, TREE_LEFT = 30, 22, 50
MOST_SHOWN, MOST_LEVELS, MOST_ANCESTORS = 10, 12, 14
LEAST_CONTEXTS = 3
"""Contexts with a value of an axis, below which its mean says nothing."""
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
    """x of a vertical line: the placebo's value, or the cap."""
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
    made = (
        _intervals(study, names),
        _tradeoff(study, names),
        _search_curve(study),
        _axes(study),
        _ancestry(study, names),
    )
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
    placebo = placebo_of(study, best)
    caption = (
        "Share of the unsafe answers that become safe, with 95 % intervals"
        f"{' on the sealed prompts' if confirmed else ''}. Intervals that overlap a grey one say little. "
        "Without a context the share is 0 by definition."
    )
    return Figure(
        title="Flip rates and their uncertainty",
        caption=caption,
        height=TOP + ROW_HEIGHT * len(shown) + 38,  # with a line for the rule's label
        marks=tuple(marks),
        across=scale.ticks,
        rule=scale.place(placebo.final.flip_rate.value or 0.0) if placebo else None,
        rule_label="strongest placebo" if placebo else "",
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


def _axes(study: Study) -> Figure | None:
    """Return the mean flip rate of each value of placement and parameters, over the contexts that are filled in so."""
    arms = [trial for trial in study.trials if trial.role == "arm" and trial.context.template]
    flips = {arm.number: arm.search.flipped_by_prompt for arm in arms if arm.search.flip_rate.n}
    seen: Mapping[str, bool] = min(flips.values(), key=len, default={})  # the prompts of the first rung, which all saw
    by_axis: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        if outcomes := [flipped for id, flipped in flips.get(arm.number, {}).items() if id in seen]:
            for axis, value in (("placement", arm.context.placement), *arm.context.params):
                by_axis[axis][str(value)].append(sum(outcomes) / len(outcomes))
    rows = []
    for axis, levels in by_axis.items():
        means = [(mean_interval(rates), value) for value, rates in levels.items() if len(rates) >= LEAST_CONTEXTS]
        means.sort(key=lambda level: -(level[0].value or 0.0))
        if len(means) > 1:
            spread = (means[0][0].value or 0.0) - (means[-1][0].value or 0.0)
            rows.append((spread, axis, means))
    shown = [(axis, *level) for _, axis, means in sorted(rows, key=lambda row: -row[0]) for level in means]
    if not shown:
        return None
    scale, marks = value_scale(SHARE, [0.0, 1.0], LEFT / 2, RIGHT), []
    for index, (axis, mean, value) in enumerate(shown[:MOST_LEVELS]):
        words = f"{percent(mean.value)} ({100 * mean.low:.0f}–{100 * mean.high:.0f}), {mean.n} contexts"
        ends, place = (scale.place(mean.low), scale.place(mean.high)), TOP + ROW_HEIGHT * index + 20
        marks.append(Mark(f"{axis}: {value}", "axis", scale.place(mean.value or 0.0), place, ends, words=words))
    return Figure(
        title="What templates were filled in with",
        caption=f"Mean flip rates on the first {len(seen):,} search prompts, with 95 % intervals over contexts; what "
        "sets contexts apart most comes first. The search tries again what did well, and with other values: a "
        "difference is a hint, not an effect.",
        height=TOP + ROW_HEIGHT * len(marks) + 30,
        marks=tuple(marks),
        across=scale.ticks,
    )


def _ancestry(study: Study, names: Mapping[int, str]) -> Figure | None:
    """Return the contexts that the finalists were made of, or those of the winner alone where these are too many."""
    by_id = {trial.context.context_id: trial for trial in reversed(study.trials)}
    finalists = [trial for trial in study.trials if trial.role == "arm" and trial.confirm]
    nodes = _with_ancestors(finalists, by_id)
    if len(nodes) > MOST_ANCESTORS and study.winner:
        nodes = _with_ancestors([study.winner], by_id)
    if len(nodes) > MOST_ANCESTORS or not any(trial.context.parents for trial in nodes):
        return None
    places: dict[str, float] = {}
    marks, path = [], ""
    for row, trial in enumerate(nodes):
        context, rate, y = trial.context, trial.search.flip_rate, TOP + TREE_HEIGHT * row + 12.0
        for above in (places[parent] for parent in context.parents if parent in places):
            left = TREE_LEFT - 12 - 40 * (y - above) / (TREE_HEIGHT * len(nodes))
            path += f"M{TREE_LEFT} {above:.0f}C{left:.0f} {above:.0f} {left:.0f} {y:.0f} {TREE_LEFT} {y:.0f}"
        style = _style(study, trial) if trial.confirm else "ancestor"
        words = f"{percent(rate.value)} of {rate.n:,}"
        marks.append(Mark(names[trial.number], style, TREE_LEFT, y, (TREE_LEFT, TREE_LEFT), words=words))
        places[context.context_id] = y
    return Figure(
        title="What the finalists were made of",
        caption="A line leads from each context down to those that were made of it; finalists are in colour. Names say "
        "which operator made a context, and what it changed; flip rates are on the search prompts that it saw.",
        height=TOP + TREE_HEIGHT * len(nodes) + 8,
        marks=tuple(marks),
        across=(),
        path=path,
    )


def _with_ancestors(trials: Iterable[Trial], by_id: Mapping[str, Trial]) -> list[Trial]:
    """Return the trials and all that they were made of, each once, in the order of proposal: behind its parents."""
    kept: dict[int, Trial] = {}
    left = list(trials)
    while left:
        trial = left.pop()
        if trial.number not in kept:
            kept[trial.number] = trial
            left += [by_id[id] for id in trial.context.parents if id in by_id]
    return [kept[number] for number in sorted(kept)]
