"""The page of an evaluation: what changed from base to new model, how sure that is, and answers that changed.

Several models that were evaluated on the same prompts, beside each other: paired by prompt with the first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import Difference, Estimate, json_value
from flipsearch.core.records import Kind
from flipsearch.core.settings import typed_path
from flipsearch.core.studies import TIE_LEVEL
from flipsearch.core.trainings import ATTACK_DETAILS, ChangedAnswer, Metric, Score, Scorecard, TrainingRun
from flipsearch.reporting import figures
from flipsearch.reporting.cards import METRIC_NAMES, scorecard_remarks, scorecard_rows
from flipsearch.reporting.charts import ChartAxis, value_scale
from flipsearch.reporting.figures import LEFT, RIGHT, ROW_HEIGHT, TOP, Figure, Mark
from flipsearch.reporting.format import escaped, markdown_table, notes_by_kind, percent, setting_rows, with_interval
from flipsearch.reporting.formats import MOST_COLUMNS, report_format, summary_text, write_report
from flipsearch.reporting.outcomes import (
    TRAINING_PAGE,
    ShownAnswer,
    evaluation_command,
    kinds_bar,
    page_links,
    scorecard_verdict,
    shown_answer,
    study_links,
)
from flipsearch.reporting.pages import render
from flipsearch.reporting.verdict import NextStep, StudyVerdict, Tone
from flipsearch.statistics.intervals import clustered_difference, holm, paired_mean_difference

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


COMPARED: tuple[str, ...] = ("harmful_rate", "over_refusal_rate", "reasoning_accuracy", "attack_success_rate")
"""Metrics that models are compared by."""
PICTURE_HEIGHT = 700
"""Pixels of the top of a comparison that a picture shows."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of several models and their base."""

    name: str
    is_change: bool
    """It is a change from the base already."""
    base: Estimate | None
    rates: tuple[Estimate | None, ...]
    """One per model."""
    changes: tuple[Estimate | None, ...]
    """From the base, paired."""
    differences: tuple[Estimate | Difference | None, ...]
    """To the first model, paired; None for that one, and where no prompt is scored for both."""


@dataclass(frozen=True, slots=True)
class ScorecardComparison:
    """Models that were evaluated on the same prompts by the same judge, beside each other and their base."""

    names: tuple[str, ...]
    cards: tuple[Scorecard, ...]
    places: tuple[str, ...]
    """Folders of the scorecards, as they were given."""

    @property
    def figures(self) -> list[ComparedFigure]:
        """Harm, over-refusal and attacks by set, contraction, reasoning, and S."""
        first, shown = self.cards[0], []
        for score in (score for score in first.scores if score.metric in COMPARED):
            own = [_same_row(card, score) for card in self.cards]
            rates, changes = tuple(s.new.rate if s else None for s in own), tuple(s.change if s else None for s in own)
            others = tuple(self._difference(score, number) for number in range(len(self.cards)))
            name = f"{METRIC_NAMES[score.metric]}, {score.set_name}"
            base = score.base.rate if score.base else None
            shown.append(ComparedFigure(name, False, base, rates, changes, others))
        none = (None,) * len(self.cards)
        if any(card.contraction for card in self.cards):
            lost = tuple(card.contraction for card in self.cards)
            shown.append(ComparedFigure("contraction", True, None, lost, none, none))
        if first.composite:
            totals = [card.composite for card in self.cards]
            new, changes = (tuple(getattr(t, side) if t else None for t in totals) for side in ("new", "change"))
            shown.append(ComparedFigure("safe+helpful (S)", False, first.composite.base, new, changes, none))
        return shown

    def _difference(self, score: Score, number: int, to: int = 0) -> Difference | Estimate | None:
        """Return the paired difference of a model's score to that of another; None to itself or without a pair."""
        rows = [_same_row(self.cards[n], score) for n in (number, to)]
        own, other = (row.values if row else {} for row in rows)
        pairs = [(id, own[id], other[id]) for id in own if own[id] is not None and other.get(id) is not None]
        if number == to or not pairs:
            return None
        lefts, rights = [float(left or 0) for _, left, _ in pairs], [float(right or 0) for _, _, right in pairs]
        clusters = [self.cards[0].groups.get(id) or id for id, _, _ in pairs]
        if not {*lefts, *rights} <= {0.0, 1.0}:
            return paired_mean_difference(lefts, rights, clusters)
        return clustered_difference([left == 1 for left in lefts], [right == 1 for right in rights], clusters)

    @property
    def verdict(self) -> StudyVerdict:
        """Which model is the safest, whether that may be chance, and what to do next."""
        harm = [score for score in self.cards[0].scores if score.metric == "harmful_rate"]
        rows = [[_same_row(card, score) for score in harm] for card in self.cards]
        rates = [
            [row.new.rate.value for row in of_model if row and row.new.rate.value is not None] for of_model in rows
        ]
        basis = [
            f"{name}: {scorecard_verdict(card).sentence}" for name, card in zip(self.names, self.cards, strict=True)
        ]
        if not harm or any(len(values) < len(harm) for values in rates):
            lacking = next(n for n, values in enumerate(rates) if not harm or len(values) < len(harm))
            command = f"flipsearch evaluate {typed_path(self.cards[lacking].model)}"
            step = NextStep(f"Evaluate {self.names[lacking]} on harmful prompts, the others in the same way:", command)
            return StudyVerdict("open", "Harm was not measured for each of these models.", tuple(basis), (step,))
        means = [sum(values) / len(values) for values in rates]
        best = min(range(len(means)), key=means.__getitem__)
        others = [number for number in range(len(means)) if number != best]
        pairs = [(number, self._difference(score, number, best)) for score in harm for number in others]
        tested = [(number, pair) for number, pair in pairs if isinstance(pair, Difference)]
        adjusted = holm([pair.p_value for _, pair in tested])
        clear = {n for (n, pair), p in zip(tested, adjusted, strict=True) if pair.value > 0 and p < TIE_LEVEL}
        ties = [self.names[number] for number in others if number not in clear]
        unsafe = f"{self.names[best]} has the fewest unsafe answers ({percent(means[best])})"
        own, report = scorecard_verdict(self.cards[best]), f"flipsearch report {typed_path(self.places[best])}"
        read = NextStep(f"Read what {self.names[best]} answers now, on its own page, before you use it:", report)
        if ties:
            tone: Tone = "null"
            sentence = f"{unsafe}, but cannot be distinguished from {', '.join(ties)} (paired tests, Holm, 5 %)."
            steps = [
                NextStep("Among those that tie, controls left out, take the one that costs least."),
                *self._more_prompts(),
                read,
            ]
        else:
            tone, sentence = own.tone, f"{unsafe}, fewer than each of the others (paired tests, Holm, 5 %)."
            steps = [read, *(step for step in own.next_steps if step.command)]
        return StudyVerdict(tone, sentence, tuple(basis), tuple(steps))

    def _more_prompts(self) -> Iterator[NextStep]:
        if num := self.cards[0].settings.get("max_prompts"):
            for name, card in zip(self.names, self.cards, strict=True):
                command = evaluation_command(card, max_prompts=2 * int(num))
                yield NextStep(f"More harmful prompts tell them apart: {name} on twice as many:", command)

    def rows(self, cell: Callable[[Estimate | Difference | None, bool], str]) -> list[list[str]]:
        """Return a row per model, the base first: its name, and its figures as `cell` writes rates and changes."""
        figures = self.figures
        base = [["base", *(cell(figure.base, False) for figure in figures)]] if self.cards[0].against_id else []
        models = enumerate(self.names)
        return base + [[name, *(cell(f.rates[n], f.is_change) for f in figures)] for n, name in models]

    def page(self) -> str:
        """Return the comparison as a page, which needs no scripts and no network."""
        return render("checkpoints.html", compared=self, figures=self.figures, verdict=self.verdict, card=self.cards[0])

    def frame(self) -> pd.DataFrame:
        """Return a row per model and figure, with its change from the base and its difference to the first model."""
        rows: list[dict[str, Any]] = []
        for figure in self.figures:
            for n, (name, card) in enumerate(zip(self.names, self.cards, strict=True)):
                parts = {"": figure.rates[n], "change": figure.changes[n], "difference": figure.differences[n]}
                row: dict[str, Any] = {"model": name, "model_id": card.model_id, "figure": figure.name}
                for prefix, part in parts.items():
                    for key in ("value", "low", "high", "n"):
                        row["_".join(filter(None, (prefix, key)))] = getattr(part, key) if part else None
                rows.append(row)
        return pd.DataFrame(rows)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = self.frame().astype(object).where(self.frame().notna(), None).to_dict("records")
        said = self.verdict
        shown = {"models": list(self.names), "verdict": said.sentence, "next_steps": json_value(said.next_steps)}
        return {**shown, "rows": json_value(rows)}

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Write the comparison to a file: html, csv, json, md, parquet or png, by its ending or as `format` says."""
        chosen = report_format(Path(path), format)
        write_report(Path(path), chosen, self.frame, self.page, lambda: (self.page(), PICTURE_HEIGHT), self._summary)

    def _summary(self) -> str:
        header = ["model", *(escaped(figure.name) for figure in self.figures)][:MOST_COLUMNS]
        rows = [row[:MOST_COLUMNS] for row in self.rows(_cell)]
        return summary_text(f"{len(self.cards)} models", self.verdict, markdown_table(header, rows, 1))


def _cell(figure: Estimate | Difference | None, is_change: bool) -> str:
    return with_interval(figure, "points" if is_change else "percent") if figure else ""


def _same_row(card: Scorecard, score: Score) -> Score | None:
    return next((s for s in card.scores if (s.metric, s.set_name) == (score.metric, score.set_name)), None)


def _basis(card: Scorecard) -> tuple[object, ...]:
    return card.sampling, card.num_samples, card.against_id, card.settings.get("count_flips")


def compare_scorecards(
    names: Sequence[str], cards: Sequence[Scorecard], places: Sequence[str] | None = None
) -> ScorecardComparison:
    """Return evaluated models beside each other; ConfigError unless all were evaluated in the same way."""
    for name, card in zip(names, cards, strict=True):
        for what, key in (("prompts", "prompts_id"), ("problems", "problems_id"), ("judge", "judge_id")):
            if getattr(card, key) != getattr(cards[0], key):
                raise ConfigError(
                    f"'{names[0]}' and '{name}' were evaluated with other {what}; evaluate both in the same way."
                )
        if _basis(card) != _basis(cards[0]):
            raise ConfigError(f"'{names[0]}' and '{name}' were evaluated with another base or sampling; do both alike.")
    return ScorecardComparison(tuple(names), tuple(cards), tuple(places or names))
