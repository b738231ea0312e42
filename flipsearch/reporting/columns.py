"""The columns of the leaderboard, each a row of COLUMNS: its key, its value, its format, and where it shows.

CSV and JSON rows, the tables of the page, the table of the terminal and the context card are all made from it; a
function there stands for a family of columns that depends on the study. Reads records only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from flipsearch.core.files import escape_formula, printable
from flipsearch.core.studies import Study, Trial
from flipsearch.reporting.format import percent, percent_with_interval, points, points_with_interval

Value = Callable[[Study, Trial], Any]
Section = Literal["leaderboard", "depth", "judges", "errors"]


@dataclass(frozen=True, slots=True)
class Format:
    """How the values of a column are written in each place."""

    cell: str = "text"
    """On the page: the macro of templates/cells.html that draws it, called with the value and the study."""
    terminal: Callable[[Any], str] = str
    parts: Mapping[str, str] = field(default_factory=dict)
    """In CSV and JSON rows: what is added to the column's key -> attribute of the value; {} writes the value itself."""
    wraps: bool = False
    """In the terminal: left-aligned, and broken where it is long."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the leaderboard."""

    name: str
    """Its key in CSV, JSON and the card."""
    value: Value
    format: Format = Format()
    csv: bool = True
    page: str | None = None
    """Header on the page; None: not shown there."""
    terminal: str | None = None
    """Header in the terminal, where 80 columns must do; None: not shown there."""
    card: bool = False
    place: int = 99
    """Where it stands on the page and in the terminal, from the left; CSV and JSON keep the order of the table."""
    section: Section = "leaderboard"
    """The page's table that it belongs to."""
    group: str = ""
    """Header over this and its neighbours on the page."""

    def entries(self, study: Study, trial: Trial) -> dict[str, Any]:
        """Return what CSV and JSON hold of a trial; what was not measured is empty, never 0."""
        value = self.value(study, trial)
        if not self.format.parts:
            return {self.name: value}
        measured = None if value is None or value.n == 0 else value
        return {self.name + end: getattr(measured, name, None) for end, name in self.format.parts.items()}

    def text(self, study: Study, trial: Trial) -> str:
        """Return what the terminal shows of a trial."""
        value = self.value(study, trial)
        return "" if value is None else printable(self.format.terminal(value))


_ENDS = {"": "value", "_low": "low", "_high": "high"}
TEXT = Format()
NUMBER = Format("number")
RATE = Format("rate", percent_with_interval, {**_ENDS, "_count": "count", "_n": "n"})
RATE_ALONE = Format("rate", lambda rate: percent(rate.value, "%"), {"": "value"})
"""A rate without its interval, but on the page."""
BAR = Format("bar")
DIFFERENCE = Format("difference", lambda figure: points(figure.value), _ENDS)
ESTIMATE = Format("estimate", percent_with_interval, _ENDS)
CHANGE = Format("change", points_with_interval, _ENDS)
SHARE = Format("estimate", percent_with_interval, {**_ENDS, "_n": "n"})


def is_search(study: Study) -> bool:
    """Return whether contexts were searched, or only scored (then nothing was chosen, and nothing confirmed)."""
    return "num_contexts" in study.settings


def depths(study: Study) -> list[int]:
    """Return the depths at which finalists were measured, 0 included; [] if none was."""
    return sorted({depth for trial in study.trials for depth, _ in trial.depth})


def _at(path: str) -> Value:
    """Return the function that reads a dotted path of a trial; None where a record on the way is None."""

    def value(_: Study, trial: Trial) -> Any:
        record: Any = trial
        for name in path.split("."):
            record = None if record is None else getattr(record, name)
        return record

    return value


def _is_winner(study: Study, trial: Trial) -> bool:
    return study.winner is not None and study.winner.context.context_id == trial.context.context_id


def _context_in_terminal(trial: Trial) -> str:
    context = trial.context
    name = context.text[:24] or "no text" if context.origin == "text" else context.origin
    return f"{name} {context.placement}" + (f" ({trial.state})" if trial.state in ("pruned", "stopped") else "")


def _over_refusal_in_terminal(study: Study, trial: Trial) -> str:
    rate = (trial.confirm or trial.search).over_refusal_rate
    return f"{'!' * study.is_over_cap(trial)}{percent(rate.value, '%')}"


def _measurements(study: Study) -> dict[str, str]:
    """Return split -> field of a trial that holds the measurement on it."""
    return {study.trials[0].search.split: "search"} | ({"confirm": "confirm"} if is_search(study) else {})


def _split_columns(study: Study) -> Iterator[Column]:
    """Yield the rates on each split; once some are confirmed, the terminal shows the interval of these alone."""
    is_confirmed = any(trial.confirm for trial in study.trials)
    for split, of in _measurements(study).items():
        is_last = (of == "confirm") == is_confirmed
        flips = Column(
            f"{split}_flip_rate",
            _at(f"{of}.flip_rate"),
            RATE if is_last else replace(RATE, terminal=RATE_ALONE.terminal),
            page=f"flip rate, {split}",
            terminal=f"{split} (95 %)" if is_last else split if of == "search" else None,
            place=5 if of == "confirm" else 3,
        )
        yield flips
        yield Column(f"{split}_tfr", _at(f"{of}.tfr"), RATE)
        refused = _at(f"{of}.over_refusal_rate")
        yield Column(f"{split}_over_refusal_rate", refused, RATE, page=f"over-refusal, {split}", place=7)
        yield Column(f"{split}_coverage", _at(f"{of}.coverage"), RATE_ALONE)
        if of == "search":
            yield Column("bar", flips.value, BAR, csv=False, page="", place=4)


def _share_columns(study: Study) -> Iterator[Column]:
    """Yield the shares of unsafe samples, for a study with several samples per prompt."""
    if study.settings.get("samples", 1) > 1:
        for split, of in _measurements(study).items():
            for side in ("before", "after"):
                yield Column(f"{split}_unsafe_share_{side}", _at(f"{of}.unsafe_share.{side}"), SHARE)


def _depth_columns(study: Study) -> Iterator[Column]:
    """Yield the confirm flip rate after so many tokens of the unsafe answer; at 0 it is the confirm flip rate."""
    for depth in depths(study):
        yield Column(
            f"depth_{depth}_flip_rate",
            lambda _, trial, depth=depth: dict(trial.depth).get(depth),
            RATE,
            csv=depth > 0,
            page=f"after {depth} tokens" if depth else "from the beginning",
            section="depth",
        )


def _judge_columns(study: Study) -> Iterator[Column]:
    """Yield the rates by each second judge."""

    def rate(judge: str, name: str) -> Value:
        return lambda _, trial: next((getattr(r, name) for r in trial.second_judgements if r.judge == judge), None)

    results = next((trial.second_judgements for trial in study.trials if trial.second_judgements), ())
    for judge in (result.judge for result in results):
        for name, header in (
            ("flip_rate", "flip rate"),
            ("unsafe_rate", "unsafe answers"),
            ("over_refusal_rate", None),
            ("disagreement", "differs"),
        ):
            yield Column(f"{name} ({judge})", rate(judge, name), RATE_ALONE, page=header, section="judges", group=judge)


def _error_columns(study: Study) -> Iterator[Column]:
    """Yield the flip rate as judged and with the judge's errors corrected, and the risk reduction by human labels."""
    is_corrected = study.judge_error is not None
    is_labelled = any(trial.risk_reduction for trial in study.trials)
    yield Column(
        "judged_flip_rate",
        lambda _, trial: (trial.confirm or trial.search).flip_rate,
        RATE,
        csv=False,
        page="flip rate, as judged" if is_corrected or is_labelled else None,
        section="errors",
    )
    yield Column(
        "corrected_flip_rate",
        lambda _, trial: trial.corrected,
        ESTIMATE,
        csv=is_corrected,
        page="flip rate, corrected" if is_corrected else None,
        card=True,
        section="errors",
    )
    yield Column(
        "risk_reduction",
        lambda _, trial: trial.risk_reduction,
        CHANGE,
        csv=is_labelled,
        page="fewer unsafe answers, points, by human labels" if is_labelled else None,
        card=True,
        section="errors",
    )


COLUMNS: tuple[Column | Callable[[Study], Iterable[Column]], ...] = (
    Column("rank", lambda study, trial: 1 + study.trials.index(trial), NUMBER, page="#", place=1),
    Column(
        "rank_of_arm",
        lambda study, trial: 1 + study.trials.index(trial) if trial.role == "arm" else None,
        csv=False,
        terminal="#",
        place=1,
    ),
    Column(
        "context",
        lambda _, trial: trial,
        Format("context", _context_in_terminal, wraps=True),
        csv=False,
        page="context",
        terminal="context",
        place=2,
    ),
    Column("winner", _is_winner),
    Column("role", lambda _, trial: trial.role),
    Column("state", lambda _, trial: trial.state),
    Column("outcome", lambda _, trial: trial, Format("outcome"), csv=False, page="state", place=10),
    Column("over_cap", lambda study, trial: study.is_over_cap(trial)),
    Column("rung", lambda _, trial: trial.rung),
    Column("trial", lambda _, trial: trial.number),
    Column("template", lambda _, trial: trial.context.template),
    Column("placement", lambda _, trial: trial.context.placement),
    Column("params", lambda _, trial: ", ".join(f"{name}={value}" for name, value in trial.context.params)),
    Column(
        "num_context_tokens",
        lambda _, trial: trial.num_context_tokens,
        NUMBER,
        page="tokens",
        terminal="tokens",
        place=9,
    ),
    _split_columns,
    _share_columns,
    Column("over_refusal_rate", _over_refusal_in_terminal, csv=False, terminal="over-ref.", place=7),
    Column(
        "net_flip_rate",
        lambda _, trial: trial.net,
        DIFFERENCE,
        page="net, points",
        terminal="net",
        card=True,
        place=6,
    ),
    Column("net_p_value", _at("net.p_value")),
    Column("optimism", lambda _, trial: trial.optimism, card=True),
    Column("behind_winner", lambda _, trial: trial.behind, DIFFERENCE),
    Column("behind_winner_p_value", _at("behind.p_value")),
    Column("ties_winner", lambda _, trial: trial.ties_winner),
    _depth_columns,
    _judge_columns,
    _error_columns,
    Column("context_id", lambda _, trial: trial.context.context_id),
    Column("parents", lambda _, trial: " ".join(trial.context.parents)),
    Column("operator", lambda _, trial: trial.context.operator),
    Column("text", lambda _, trial: trial.context.text),
)


def columns_of(study: Study) -> list[Column]:
    """Return all columns of a study, in the order of CSV and JSON, with its families spelled out."""
    return [column for entry in COLUMNS for column in ([entry] if isinstance(entry, Column) else entry(study))]


def page_columns(study: Study) -> dict[Section, list[Column]]:
    """Return the columns of each table of the page, from the left."""
    sections: dict[Section, list[Column]] = {"leaderboard": [], "depth": [], "judges": [], "errors": []}
    for column in sorted(columns_of(study), key=lambda column: column.place):
        if column.page is not None:
            sections[column.section].append(column)
    return sections


def terminal_columns(study: Study) -> list[Column]:
    """Return the columns of the terminal's table, from the left."""
    shown = (column for column in columns_of(study) if column.terminal is not None)
    return sorted(shown, key=lambda column: column.place)


def rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per trial for JSON, in the order of the study: best first, placebos last."""
    columns = [column for column in columns_of(study) if column.csv]
    return [
        {key: value for column in columns for key, value in column.entries(study, trial).items()}
        for trial in study.trials
    ]


def leaderboard(study: Study) -> pd.DataFrame:
    """Return the rows as a table; counts are whole numbers."""
    return pd.DataFrame(rows(study)).convert_dtypes()


def csv_text(frame: pd.DataFrame) -> str:
    """Return the leaderboard as CSV.

    A text cell that a spreadsheet would run as a formula gets a leading apostrophe: contexts are hostile text. A
    carriage return becomes a line break: a lone one would be left bare, and readers would end the row there.
    """

    def inert(cell: Any) -> Any:
        return escape_formula(cell).replace("\r\n", "\n").replace("\r", "\n") if isinstance(cell, str) else cell

    safe = frame.copy()
    for name in safe.select_dtypes(include=["object", "string"]).columns:
        safe[name] = [inert(cell) for cell in safe[name]]
    return safe.to_csv(index=False, lineterminator="\n", float_format="%.6g")
