"""The scorecard as rows for a terminal, as Markdown for a model card, and as a file.

Rates in per cent, changes in points, every one with its 95 % interval and n. Names and notes may hold hostile text: the
rows are plain text (whoever prints them takes control characters out), the Markdown escapes them.
"""

import html
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flipsearch.core.errors import StudyError
from flipsearch.core.files import json_text, printable, write_text
from flipsearch.core.records import Estimate
from flipsearch.core.scorecards import Composite, Metric, Score, Scorecard

SCORECARD = TypeAdapter(Scorecard)
METRIC_NAMES: dict[Metric, str] = {
    "harmful_rate": "harmful rate",
    "over_refusal_rate": "over-refusal",
    "reasoning_accuracy": "reasoning",
}
LEGEND = "Change: new minus base in points, paired. Tax: reasoning lost, base minus new. In brackets: 95 % intervals."
LEGEND_WITHOUT_BASE = "In brackets: 95 % intervals."
LEGEND_OF_N = "n is that of the new rate; where a base or a change (pairs) has another, it stands with it."
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~])")


def scorecard_dict(card: Scorecard) -> dict[str, Any]:
    """Return the scorecard as JSON-able values: what scorecard.json holds."""
    found: dict[str, Any] = SCORECARD.dump_python(card, mode="json")
    return found


def write_scorecard(card: Scorecard, path: Path) -> None:
    """Write a scorecard as JSON; raises StudyError for a full disk or a read-only folder."""
    write_text(path, json_text(scorecard_dict(card)))


def read_scorecard(path: Path) -> Scorecard:
    """Read what write_scorecard wrote; raises StudyError if there is none or it is of another version."""
    try:
        return SCORECARD.validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"no scorecard at '{path}': {error.strerror}; run flipsearch evaluate first.") from error
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise StudyError(f"{path}: no scorecard of this version: {why}; run flipsearch evaluate again.") from error


def scorecard_text(card: Scorecard) -> list[list[str]]:
    """Return the header and one row a figure: metric, set, base, new, change, n; no base, no columns for it.

    n is that of the new rate, or of the tax; a base or a change with another n has its own in a second line.
    """
    rows = [["metric", "set", "base", "new", "change", "n"], *_rows(card)]
    return rows if card.against_id else [[*row[:2], row[3], row[5]] for row in rows]


def _rows(card: Scorecard) -> list[list[str]]:
    rows = [_row(METRIC_NAMES[score.metric], score.set_name, *_figures(score)) for score in card.scores]
    if card.reasoning and len(card.of("reasoning_accuracy")) > 1:
        rows.append(_row("reasoning", "all problems", *_parts(card.reasoning)))
    if card.composite:
        rows.append(_row("S (composite)", "all sets", *_parts(card.composite)))
    if card.tax:
        rows.append(_row("tax", "all problems", None, None, card.tax))
    return rows


def scorecard_remarks(card: Scorecard) -> list[str]:
    """Return the legend, how many answers are in no rate, and the notes."""
    legend = [LEGEND if card.against_id else LEGEND_WITHOUT_BASE]
    if any("\n" in cell for _, _, base, _, change, _ in _rows(card) for cell in (base, change)):
        legend.append(LEGEND_OF_N)
    return [*legend, *_unscored(card), *card.notes]


def scorecard_markdown(card: Scorecard) -> str:
    """Return the scorecard as a Markdown table with what one must know to read it."""
    header, *rows = scorecard_text(card)
    against = f" against `{code(card.against)}`" if card.against else ""
    draws = "greedy decoding" if card.sampling.temperature == 0 else f"temperature {card.sampling.temperature:g}"
    samples = f", {card.num_samples} answers a problem" if card.num_samples > 1 else ""
    lines = [
        f"`{code(card.model)}`{against}: judge {escaped(card.judge)}, {card.split} prompts, {draws}{samples}, "
        f"at most {card.sampling.max_tokens:,} tokens.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * 2}{'---:|' * (len(header) - 2)}",
        *(f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows),
        "",
        *(f"- {escaped(remark)}" for remark in scorecard_remarks(card)),
    ]
    return "\n".join(lines) + "\n"


def _figures(score: Score) -> tuple[Estimate | None, Estimate, Estimate | None]:
    return score.base.rate if score.base else None, score.new.rate, score.change


def _parts(composite: Composite) -> tuple[Estimate | None, Estimate, Estimate | None]:
    return composite.base, composite.new, composite.change


def _row(name: str, set_name: str, base: Estimate | None, new: Estimate | None, change: Estimate | None) -> list[str]:
    main = new or change
    n = main.n if main else 0
    return [
        name,
        set_name,
        _with_n(_percent(base), base, n),
        _percent(new),
        _with_n(_points(change), change, n),
        f"{n:,}",
    ]


def _with_n(text: str, figure: Estimate | None, n: int) -> str:
    return text if figure is None or figure.n == n else f"{text}\nn {figure.n:,}"


def _percent(rate: Estimate | None) -> str:
    if rate is None:
        return ""
    if rate.value is None:
        return "–"
    return f"{100 * rate.value:.1f}% ({100 * rate.low:.0f}–{100 * rate.high:.0f})"


def _points(change: Estimate | None) -> str:
    if change is None:
        return ""
    if change.value is None:
        return "–"
    return f"{_signed(change.value, 1)} ({_signed(change.low, 1)} to {_signed(change.high, 1)})"


def _signed(value: float, digits: int) -> str:
    text = f"{100 * value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _unscored(card: Scorecard) -> list[str]:
    found = []
    for score in card.scores:
        sides = {"new": score.new, "base": score.base}
        counts = [
            f"{side} {one.num_unscored} ({100 * (one.coverage.value or 0):.0f} % scored)"
            for side, one in sides.items()
            if one is not None
        ]
        if any(one is not None and one.num_unscored for one in sides.values()):
            name = f"{METRIC_NAMES[score.metric]}, {score.set_name}"
            found.append(f"Unscored answers, left out of the rates ({name}): {', '.join(counts)}.")
    return found


def code(text: str) -> str:
    """Text inside backticks: none of its own, and no line break."""
    return _line(text.replace("`", "'"))


def escaped(text: str) -> str:
    """Text that Markdown and HTML leave as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", html.escape(_line(text), quote=False))


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
