"""The scorecard as rows for a terminal and as Markdown for a model card.

Rates in percent, changes in points, each with its 95 % interval and n. Names and notes may hold hostile text: the rows
are plain text (the terminal removes control characters), the Markdown escapes them.
"""

from collections.abc import Iterator

from flipsearch.core.records import ANSWER_KINDS, Estimate
from flipsearch.core.scorecards import Measured, Metric, Scorecard
from flipsearch.reporting.format import Unit, code, escaped, markdown_table, with_interval

ScoreFigures = tuple[Estimate | None, Estimate | None, Estimate | None]
"""Base, new and change; None does not apply."""
UNITS: tuple[Unit, Unit, Unit] = ("percent", "percent", "points")
METRIC_NAMES: dict[Metric, str] = {
    "harmful_rate": "harmful rate",
    "over_refusal_rate": "over-refusal",
    "reasoning_accuracy": "reasoning",
}
HEADER = ["metric", "set", "base", "new", "change", "n"]
LEGEND = "Change: new minus base in points, paired. Tax: reasoning lost, base minus new. In brackets: 95 % intervals."
LEGEND_WITHOUT_BASE = "In brackets: 95 % intervals."
LEGEND_OF_N = "n is that of the new rate; where a base or a change (pairs) has another, it is given with it."


def scorecard_rows(card: Scorecard) -> list[list[str]]:
    """Return the header and one row per figure: metric, set, base, new, change, n; without a base, no columns for it.

    n is that of the new rate, or of the tax; a base or a change with another n has its own in a second line.
    """
    rows = [HEADER]
    for name, set_name, figures in _figures(card):
        n = next(figure.n for figure in figures[1:] if figure)
        cells = []
        for figure, unit in zip(figures, UNITS, strict=True):
            cell = with_interval(figure, unit) if figure else ""
            cells.append(cell if figure is None or figure.n == n else f"{cell}\nn {figure.n:,}")
        rows.append([name, set_name, *cells, f"{n:,}"])
    return rows if card.against_id else [[*row[:2], row[3], row[5]] for row in rows]


def scorecard_remarks(card: Scorecard) -> list[str]:
    """Return the legend, how many answers are in no rate, and the notes."""
    remarks = [LEGEND if card.against_id else LEGEND_WITHOUT_BASE]
    if any(len({figure.n for figure in figures if figure}) > 1 for _, _, figures in _figures(card)):
        remarks.append(LEGEND_OF_N)
    for score in card.scores:
        sides = [(name, side) for name, side in (("new", score.new), ("base", score.base)) if side]
        if any(side.num_unscored for _, side in sides):
            counts = ", ".join(
                f"{name} {side.num_unscored} ({100 * (side.coverage.value or 0):.0f} % scored)" for name, side in sides
            )
            name = f"{METRIC_NAMES[score.metric]}, {score.set_name}"
            remarks.append(f"Unscored answers, left out of the rates ({name}): {counts}.")
        if any(side.kinds for _, side in sides):
            counts = "; ".join(f"{name} {_kinds(side)}" for name, side in sides)
            remarks.append(f"Answers to harmful prompts by kind ({score.set_name}): {counts}.")
    return [*remarks, *card.notes]


def scorecard_markdown(card: Scorecard) -> str:
    """Return the scorecard as a Markdown table with what is needed to read it."""
    against = f" against {code(card.against)}" if card.against else ""
    decoding = "greedy decoding" if card.sampling.temperature == 0 else f"temperature {card.sampling.temperature:g}"
    samples = f", {card.num_samples} answers per problem" if card.num_samples > 1 else ""
    header, *rows = scorecard_rows(card)
    introduction = (
        f"{code(card.model)}{against}: judge {escaped(card.judge)}, {card.split} prompts, {decoding}{samples}, "
        f"at most {card.sampling.max_tokens:,} tokens."
    )
    remarks = "".join(f"- {escaped(remark)}\n" for remark in scorecard_remarks(card))
    return f"{introduction}\n\n{markdown_table(header, rows, num_names=2)}\n\n{remarks}"


def _kinds(side: Measured) -> str:
    """Return how many answers are of each kind; degenerate ones make a low harmful rate worth nothing."""
    return ", ".join(f"{side.kinds[kind]} {kind}" for kind in ANSWER_KINDS if side.kinds.get(kind)) or "none known"


def _figures(card: Scorecard) -> Iterator[tuple[str, str, ScoreFigures]]:
    """Yield metric, set and figures of every row."""
    for score in card.scores:
        base = score.base.rate if score.base else None
        yield METRIC_NAMES[score.metric], score.set_name, (base, score.new.rate, score.change)
    if card.reasoning and sum(score.metric == "reasoning_accuracy" for score in card.scores) > 1:
        yield "reasoning", "all problems", (card.reasoning.base, card.reasoning.new, card.reasoning.change)
    if card.composite:
        yield "S (composite)", "all sets", (card.composite.base, card.composite.new, card.composite.change)
    if card.tax:
        yield "tax", "all problems", (None, None, card.tax)
