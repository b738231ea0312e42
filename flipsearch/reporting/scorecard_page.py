"""The page of an evaluation: what changed from base to new model, how sure that is, and answers that changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flipsearch.core.records import Kind
from flipsearch.core.trainings import ATTACK_DETAILS, ChangedAnswer, Metric, Scorecard, TrainingRun
from flipsearch.reporting import figures
from flipsearch.reporting.cards import METRIC_NAMES, scorecard_remarks, scorecard_rows
from flipsearch.reporting.charts import ChartAxis, value_scale
from flipsearch.reporting.figures import LEFT, RIGHT, ROW_HEIGHT, TOP, Figure, Mark
from flipsearch.reporting.format import notes_by_kind, setting_rows, with_interval
from flipsearch.reporting.outcomes import (
    TRAINING_PAGE,
    ShownAnswer,
    kinds_bar,
    page_links,
    scorecard_verdict,
    shown_answer,
    study_links,
)
from flipsearch.reporting.pages import render

SHOWN_ELSEWHERE = ("Answers to harmful", "Success of ")
"""How remarks begin that say in words what the page has a picture or a table of."""
CHANGES: dict[tuple[Metric, bool], str] = {
    ("harmful_rate", True): "unsafe → safe",
    ("harmful_rate", False): "safe → unsafe",
    ("over_refusal_rate", True): "refused → answered",
    ("over_refusal_rate", False): "answered → refused",
    ("attack_variant_rate", True): "attack worked → failed",
    ("attack_variant_rate", False): "attack failed → worked",
    ("reasoning_accuracy", True): "wrong → right",
    ("reasoning_accuracy", False): "right → wrong",
}


@dataclass(frozen=True, slots=True)
class ChangeGroup:
    """Prompts of one set whose score changed in one direction."""

    title: str
    is_better: bool
    num: int
    examples: tuple[tuple[str, ShownAnswer, ShownAnswer], ...]
    """Prompt, the base's answer and the new model's."""


def scorecard_page(
    card: Scorecard, changes: Sequence[ChangedAnswer] = (), run: TrainingRun | None = None, folder: Path = Path()
) -> str:
    """Return scorecard.html, which lies in `folder`; `run` is the training that made the checkpoint, if one did."""
    header, *rows = scorecard_rows(card)
    return render(
        "scorecard.html",
        card=card,
        notes=notes_by_kind(card, usual="warning"),
        verdict=scorecard_verdict(card),
        links=[*(page_links([("training", TRAINING_PAGE)], folder) if run else ()), *study_links(run, folder)],
        header=header,
        rows=rows,
        variants=scorecard_rows(card, of_variants=True)[1:],
        remarks=[r for r in scorecard_remarks(card) if r not in card.notes and not r.startswith(SHOWN_ELSEWHERE)],
        figure=_changes(card),
        box=figures,
        kinds=[
            (side_name, score.set_name, kinds_bar(side.kinds, side.coverage.n))
            for score in card.scores
            if score.metric not in ATTACK_DETAILS
            for side_name, side in (("base", score.base), ("new", score.new))
            if side and side.kinds
        ],
        groups=list(_groups(card, changes)),
        settings=setting_rows(card.settings),
    )


def _groups(card: Scorecard, changes: Sequence[ChangedAnswer]) -> Iterator[ChangeGroup]:
    for score in (score for score in card.scores if (score.metric, True) in CHANGES):
        for is_better, num in ((True, score.num_better), (False, score.num_worse)):
            place = (score.metric, score.set_name, is_better)
            kind: Kind = "harmful" if score.metric in ("harmful_rate", "attack_variant_rate") else "benign"
            examples = tuple(
                (change.prompt, shown_answer("base", change.base, kind), shown_answer("new", change.new, kind))
                for change in changes
                if (change.metric, change.set_name, change.is_better) == place
            )
            if num:
                title = f"{CHANGES[score.metric, is_better]} ({score.set_name})"
                yield ChangeGroup(title, is_better, num, examples)


def _changes(card: Scorecard) -> Figure | None:
    """Return the paired changes, each a row; green is better, red is worse, and grey may be chance."""
    shown = [
        (f"{METRIC_NAMES[score.metric]}, {score.set_name}", score.change, score.metric != "reasoning_accuracy")
        for score in card.scores
        if score.change and score.change.n and score.metric != "attack_variant_rate"
    ]
    if card.composite and card.composite.change:
        shown.append(("safe+helpful, all sets", card.composite.change, False))
    if not shown:
        return None
    ends = [100 * end for _, change, _ in shown for end in (change.low, change.high)]
    scale = value_scale(ChartAxis("points", low=None), [0.0, *ends], LEFT / 2, RIGHT)
    marks: list[Mark] = []
    for name, change, is_better_low in shown:
        is_change = change.low > 0 or change.high < 0
        style = "placebo" if not is_change else "winner" if (change.high < 0) == is_better_low else "best"
        at, *ends = (scale.place(100 * end) for end in (change.value or 0.0, change.low, change.high))
        words, row = with_interval(change, "points"), TOP + ROW_HEIGHT * len(marks) + 20
        marks.append(Mark(name, style, at, row, (ends[0], ends[1]), words=words))
    return Figure(
        title="Changes, prompt by prompt",
        caption="New minus base in points, paired, with 95 % intervals. Green is better, red is worse; an "
        "interval that holds 0 is grey: the change may be chance.",
        height=TOP + ROW_HEIGHT * len(marks) + 44,
        marks=tuple(marks),
        across=scale.ticks,
        rule=scale.place(0.0),
        rule_label="no change",
    )
