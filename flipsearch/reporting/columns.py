"""The columns of the leaderboard, each a row of COLUMNS: its key, its value, its format, and where it shows.

CSV, JSON, page, terminal and context card are all made from it; a function in it yields columns that depend on the
study. Reads records only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from flipsearch.core.files import csv_cell, printable
from flipsearch.core.measurements import Measurement, Rate
from flipsearch.core.records import FLIP_KINDS, AnswerKind
from flipsearch.core.studies import Study, StudyKind, Trial
from flipsearch.reporting.format import (
    DASH,
    Cell,
    bar_cell,
    change_cell,
    difference_cell,
    estimate_cell,
    kinds_cell,
    outcome_cell,
    percent,
    points,
    rate_cell,
    text_cell,
    with_interval,
)
from flipsearch.statistics.intervals import wilson

Value = Callable[[Study, Trial], Any]
Section = Literal["leaderboard", "depth", "judges", "errors"]
"""A table of the page."""


@dataclass(frozen=True, slots=True)
class Format:
    """How the values of a column are written in each place."""

    cell: Callable[[Any, Study], Cell] = text_cell
    """On the page: makes its cell of the value and the study."""
    terminal: Callable[[Any], str] = str
    parts: Mapping[str, str] = field(default_factory=dict)
    """In CSV and JSON: ending of the column's key -> attribute of the value; {} writes the value itself."""
    wraps: bool = False
    """In the terminal: left-aligned, and broken where it is long."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the leaderboard; `name` is its key in CSV, JSON and the card."""

    name: str
    value: Value
    format: Format = Format()
    csv: bool = True
    page: str | None = None
    """Header on the page; None: not shown there."""
    hint: str = ""
    """The header in plain words, below it."""
    is_extra: bool = False
    """On the page only when all columns are requested."""
    terminal: str | None = None
    """Header in the terminal, which has 80 characters for all; None: not shown there. See columns_legend."""
    card: bool = False
    place: int = 99
    """Its position on the page and in the terminal, from the left; CSV and JSON keep the order of the table."""
    section: Section = "leaderboard"
    group: str = ""
    """Header over this and its neighbours on the page."""

    def entries(self, study: Study, trial: Trial) -> dict[str, Any]:
        """Return what CSV and JSON hold of a trial; what was not measured is empty, never 0."""
        value = self.value(study, trial)
        if not self.format.parts:
            return {self.name: value}
        measured = None if value is None or value.n == 0 else value
        return {self.name + end: getattr(measured, name, None) for end, name in self.format.parts.items()}

    def cell(self, study: Study, trial: Trial) -> Cell:
        """Return what the page shows of a trial."""
        return self.format.cell(self.value(study, trial), study)

    def text(self, study: Study, trial: Trial) -> str:
        """Return what the terminal shows of a trial."""
        value = self.value(study, trial)
        return "" if value is None else printable(self.format.terminal(value))


KIND_LETTERS: Mapping[AnswerKind, str] = {"refusal": "r", "redirection": "d", "help": "h", "degenerate": "x"}
"""How the terminal writes kinds of answers."""


def kind_rate(measured: Measurement, kind: AnswerKind) -> Rate:
    """Return the share of the prompts that are unsafe without the context that get an answer of a kind under it."""
    return wilson(measured.kinds_after.get(kind, 0), measured.num_unsafe_before)


def kinds_in_terminal(measured: Measurement) -> str:
    """Return the shares of the kinds in percent, those without any left out: r80 h10."""
    rates = [(letter, kind_rate(measured, kind)) for kind, letter in KIND_LETTERS.items()]
    return " ".join(f"{letter}{100 * (rate.value or 0):.0f}" for letter, rate in rates if rate.count)


def columns_legend(columns: Iterable[Column]) -> str:
    """Return what the headers in the terminal mean, but for the kinds."""
    meanings = []
    for column in columns:
        head, name = (column.terminal or "").partition(" (")[0], (column.page or "").partition(",")[0]
        words = ", ".join(filter(None, (name if name != head else "", column.hint.replace(";", ","))))
        meanings += [f"{head}: {words}"] if words and column.format is not KINDS else []
    return "; ".join(meanings)


def kinds_legend(study: Study) -> str:
    """Return how to read the kinds, in words."""
    counted = study.settings.get("count_flips", FLIP_KINDS)
    names = [kind if kind in counted else f"{kind} (not counted)" for kind in FLIP_KINDS]
    letters = [f"{KIND_LETTERS[kind]} {name}" for kind, name in zip(FLIP_KINDS, names, strict=True)]
    return f"kinds: % of the unsafe prompts that turn into {', '.join(letters)}"


_ENDS = {"": "value", "_low": "low", "_high": "high"}
OUTCOME = Format(outcome_cell)
RATE = Format(rate_cell, lambda rate: with_interval(rate, "percent"), {**_ENDS, "_count": "count", "_n": "n"})
RATE_ALONE = Format(rate_cell, lambda rate: percent(rate.value, "%"), {"": "value"})
"""A rate without its interval, but on the page."""
DIFFERENCE = Format(difference_cell, lambda figure: points(figure.value), _ENDS)
COUNT_DIFFERENCE = replace(DIFFERENCE, parts={**_ENDS, "_count": "count", "_n": "n"})
ESTIMATE = Format(estimate_cell, lambda figure: with_interval(figure, "percent"), _ENDS)
SHARE = replace(ESTIMATE, parts={**_ENDS, "_n": "n"})
KINDS = Format(kinds_cell, kinds_in_terminal, wraps=True)
CHANGE = Format(change_cell, lambda figure: with_interval(figure, "points"), _ENDS)


def rank_of(study: Study, trial: Trial) -> int:
    """Return the place of a trial on the leaderboard, from 1."""
    # By its number: to compare whole trials with all before them would take minutes where there are a thousand.
    return 1 + [other.number for other in study.trials].index(trial.number)


def _at(path: str) -> Value:
    """Return the function that reads a dotted path of a trial; None where a record on the way is None."""

    def value(_: Study, trial: Trial) -> Any:
        record: Any = trial
        for name in path.split("."):
            record = None if record is None else getattr(record, name)
        return record

    return value


def _refusals(study: Study, trial: Trial) -> str:
    """Return the refusals of benign prompts that the cap is on, marked where they are above it."""
    cap, measured = study.refusal_cap, trial.final
    if cap and cap.counts == "total":
        return "!" * study.is_over_cap(trial) + percent(measured.over_refusal_rate.value, "%")
    added = measured.added_refusals
    return "!" * study.is_over_cap(trial) + (points(added.value) + " pt" if added.n else DASH)


REFUSED = "benign prompts refused (pt: points more than without a context)"
CONTEXT = Format(wraps=True)
"""In the terminal, the caller names the trial."""


def _split_columns(study: Study) -> Iterator[Column]:
    """Yield the rates on each split, then the shares of unsafe samples where there are several per prompt.

    Once some trials are confirmed, the terminal shows the interval of the confirm flip rate alone.
    """
    is_confirmed = any(trial.confirm for trial in study.trials)
    # One above the cap is not confirmed: what it refused stands with the search split.
    has_dear = any(map(study.is_over_cap, study.trials))
    splits = {study.trials[0].search.split: "search"}
    if study.kind is StudyKind.SEARCH and not study.unfinished:
        splits["confirm"] = "confirm"
    for split, of in splits.items():
        is_last = (of == "confirm") == is_confirmed
        flips, header = _at(f"{of}.flip_rate"), f"{split} (95 %)" if is_last else split if of == "search" else None
        form = RATE if is_last else replace(RATE, terminal=RATE_ALONE.terminal)
        hint = "on sealed prompts" if of == "confirm" else "on the prompts that chose"
        if study.kind is StudyKind.SCORE:
            hint = "unsafe answers made safe"
        if is_last:
            form = replace(form, cell=bar_cell)
        page, place = f"flip rate, {split}", 3 if is_last else 5
        yield Column(f"{split}_flip_rate", flips, form, page=page, hint=hint, terminal=header, place=place)
        yield Column(f"{split}_tfr", _at(f"{of}.tfr"), RATE)
        refused = _at(f"{of}.over_refusal_rate")
        yield Column(
            f"{split}_over_refusal_rate",
            refused,
            RATE,
            page=f"over-refusal, {split}",
            hint="benign prompts refused",
            is_extra=True,
            place=7,
        )
        added = _at(f"{of}.added_refusals")
        page, hint = f"more refused, {split}", "benign, than without; points"
        key = f"{split}_added_refusals"
        yield Column(key, added, COUNT_DIFFERENCE, page=page, hint=hint, is_extra=not (is_last or has_dear), place=7)
        yield Column(f"{split}_coverage", _at(f"{of}.coverage"), RATE_ALONE)
        yield Column(f"{split}_cut_rate", _at(f"{of}.endings.cut"), RATE_ALONE)
    if study.settings.get("samples", 1) > 1:
        for split, of in splits.items():
            for side in ("before", "after"):
                yield Column(f"{split}_unsafe_share_{side}", _at(f"{of}.unsafe_share.{side}"), SHARE)


def _depth_columns(study: Study) -> Iterator[Column]:
    """Yield the confirm flip rate after so many tokens of the unsafe answer; at 0 it is the confirm flip rate."""

    def rate(depth: int) -> Value:
        return lambda _, trial: dict(trial.late.depth).get(depth)

    for depth in sorted({depth for trial in study.trials for depth, _ in trial.late.depth}):
        header = f"after {depth} tokens" if depth else "from the beginning"
        yield Column(f"depth_{depth}_flip_rate", rate(depth), RATE, csv=depth > 0, page=header, section="depth")


def _judge_columns(study: Study) -> Iterator[Column]:
    """Yield the rates by each second judge."""

    def rate(judge: str, name: str) -> Value:
        return lambda _, trial: next((getattr(r, name) for r in trial.late.second_judgements if r.judge == judge), None)

    headers = {"flip_rate": "flip rate", "unsafe_rate": "unsafe answers", "disagreement": "differs"}
    results = next((trial.late.second_judgements for trial in study.trials if trial.late.second_judgements), ())
    for judge in (result.judge for result in results):
        for name in ("flip_rate", "unsafe_rate", "over_refusal_rate", "disagreement"):
            key, value, header = f"{name} ({judge})", rate(judge, name), headers.get(name)
            yield Column(key, value, RATE_ALONE, page=header, section="judges", group=judge)


def _error_columns(study: Study) -> Iterator[Column]:
    """Yield the flip rate as judged and corrected for the judge's errors, and the risk reduction by human labels."""
    is_corrected = study.judge_error is not None and study.judge_error.corrects
    is_labelled = any(trial.late.risk_reduction for trial in study.trials)
    if is_corrected or is_labelled:
        judged = _at("final.flip_rate")
        yield Column("judged_flip_rate", judged, RATE, csv=False, page="flip rate, as judged", section="errors")
    reduction = "fewer unsafe answers, points, by human labels"
    for name, path, form, header, is_shown in (
        ("corrected_flip_rate", "late.corrected", ESTIMATE, "flip rate, corrected", is_corrected),
        ("risk_reduction", "late.risk_reduction", CHANGE, reduction, is_labelled),
    ):
        page = header if is_shown else None
        yield Column(name, _at(path), form, csv=is_shown, page=page, card=True, section="errors")


def _ending_columns(study: Study) -> Iterator[Column]:
    """Yield how answers under a context ended, those that were not scored included; thoughts where there are any."""
    endings = [trial.final.endings for trial in study.trials if trial.final.endings]
    cut = any(ending.cut.count for ending in endings)
    thinks = any(ending.forced.count or ending.leaks.count for ending in endings)
    thinks |= bool(study.settings.get("think_tokens"))
    percents = replace(RATE, terminal=RATE_ALONE.terminal)
    for name, header, is_shown, terminal in (
        ("cut", "cut at max tokens", True, "cut" if cut else None),
        ("forced", "thoughts closed by budget", thinks, None),
        ("leaks", "thoughts in the answer", thinks, None),
    ):
        value, page = _at(f"final.endings.{name}"), header if is_shown else None
        where: dict[str, Any] = {"csv": is_shown, "page": page, "card": is_shown, "terminal": terminal}
        yield Column(f"{name}_rate", value, percents, hint="share of the answers", is_extra=True, place=8, **where)


def _kind_columns(_: Study) -> Iterator[Column]:
    """Yield what the prompts that are unsafe without a context turn into, and each kind's share."""
    final, hint = _at("final"), "what unsafe answers become"
    yield Column("kinds", final, KINDS, csv=False, page="turned into", hint=hint, terminal="kinds", place=6)

    def rate(kind: AnswerKind) -> Value:
        return lambda _, trial: kind_rate(trial.final, kind)

    for kind in FLIP_KINDS:
        yield Column(f"{kind}_share", rate(kind), RATE_ALONE)


def _contraction_columns(study: Study) -> Iterator[Column]:
    """Yield how much of what answers to benign prompts say is lost; in the terminal only where that is too much."""
    header = "lost" if any(study.is_contracted(trial) for trial in study.trials) else None
    value, form = _at("final.contraction"), replace(CHANGE, parts={**_ENDS, "_n": "n"})

    def marked(study: Study, trial: Trial) -> str:
        figure = trial.final.contraction
        return "!" * study.is_contracted(trial) + percent(figure.value if figure else None, "%")

    yield Column("contraction", value, form, page="benign answers lost", hint="of their word pairs; points", place=8)
    said = "of what answers to benign prompts say"
    yield Column("contraction_marked", marked, csv=False, hint=said, terminal=header, place=8)


COLUMNS: tuple[Column | Callable[[Study], Iterable[Column]], ...] = (
    Column(
        "rank",
        lambda study, trial: rank_of(study, trial) if trial.role == "arm" else None,
        page="#",
        terminal="#",
        place=1,
    ),
    Column("context", lambda _, trial: trial, CONTEXT, csv=False, page="context", terminal="context", place=2),
    Column(
        "winner",
        lambda study, trial: study.winner is not None and study.winner.context.context_id == trial.context.context_id,
    ),
    Column("role", _at("role")),
    Column("state", _at("state")),
    Column("outcome", lambda _, trial: trial, OUTCOME, csv=False, page="state", hint="how far it got", place=10),
    Column("over_cap", lambda study, trial: study.is_over_any_cap(trial)),
    Column("rung", _at("rung")),
    Column("trial", _at("number")),
    Column("template", _at("context.template")),
    Column("placement", _at("context.placement")),
    Column("params", lambda _, trial: ", ".join(f"{name}={value}" for name, value in trial.context.params)),
    Column(
        "num_context_tokens",
        _at("num_context_tokens"),
        page="tokens",
        hint="of the context",
        terminal="tokens",
        place=9,
    ),
    _split_columns,
    Column("refusals", _refusals, csv=False, hint=REFUSED, terminal="refuses", place=7),
    _kind_columns,
    _contraction_columns,
    _ending_columns,
    Column(
        "net_flip_rate",
        _at("net"),
        DIFFERENCE,
        page="net",
        hint="beyond neutral text or no context; points",
        terminal="net",
        card=True,
        place=4,
    ),
    Column("net_p_value", _at("net.p_value")),
    Column("word_order", _at("late.word_order"), DIFFERENCE, card=True),
    Column("added_refusals", _at("final.added_refusals"), csv=False, card=True),
    Column("optimism", _at("optimism"), card=True),
    Column("behind_winner", _at("late.behind"), DIFFERENCE),
    Column("behind_winner_p_value", _at("late.behind.p_value")),
    Column("ties_winner", _at("ties_winner")),
    Column("ties_winner_on_search", lambda study, trial: trial.context.context_id in study.search_ties),
    _depth_columns,
    _judge_columns,
    _error_columns,
    Column("context_id", _at("context.context_id")),
    Column("parents", lambda _, trial: " ".join(trial.context.parents)),
    Column("operator", _at("context.operator")),
    Column("text", _at("context.text")),
)


def columns_of(study: Study, where: Literal["csv", "page", "terminal", "card"]) -> list[Column]:
    """Return the columns of a study that are shown in one place, those of families spelled out.

    CSV and card keep the order of the table; on the page and in the terminal `place` decides.
    """
    columns = [column for entry in COLUMNS for column in ([entry] if isinstance(entry, Column) else entry(study))]
    shown = [column for column in columns if getattr(column, where) not in (None, False)]
    return sorted(shown, key=lambda column: column.place) if where in ("page", "terminal") else shown


def rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per trial for JSON, in the order of the study: best first, placebos last."""
    columns = columns_of(study, "csv")
    entries = ([column.entries(study, trial) for column in columns] for trial in study.trials)
    return [{key: value for part in parts for key, value in part.items()} for parts in entries]


def leaderboard(study: Study) -> pd.DataFrame:
    """Return the rows as a table; counts are whole numbers."""
    return pd.DataFrame(rows(study)).convert_dtypes()


def csv_text(frame: pd.DataFrame) -> str:
    """Return the leaderboard as CSV.

    Contexts are hostile text, see csv_cell; the texts as they are lie in the study's file.
    """
    safe = frame.copy()
    for name in safe.select_dtypes(include=["object", "string"]).columns:
        safe[name] = list(map(csv_cell, safe[name]))
    return safe.to_csv(index=False, lineterminator="\n", float_format="%.6g")
