"""The pages of a study and of a training: no network, every text escaped, long texts folded.

The leaderboard says what matters without scripts; a script of our own, which the page allows by its hash, sorts and
filters and opens what is in its data blocks (page_data.py). The curves of a training are CURVES, each with a sentence
on what to look for. The templates hold the other words. Knows records, logs and the ledger.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from flipsearch.core.errors import StudyError, one_line
from flipsearch.core.records import Kind
from flipsearch.core.settings import typed_path
from flipsearch.core.studies import MIN_LABELS, Study, StudyKind
from flipsearch.core.trainings import METHODS, LoggedAnswer, LogLine, Scorecard, TrainingRun
from flipsearch.ledger import Ledger
from flipsearch.reporting import charts, figures, format
from flipsearch.reporting.cards import KINDS, control_note, prompts_sentence
from flipsearch.reporting.charts import Chart, ChartAxis, Series, draw
from flipsearch.reporting.columns import Section, columns_of
from flipsearch.reporting.format import (
    Cell,
    duration,
    is_drawable,
    kinds_cell,
    names_of,
    notes_by_kind,
    setting_rows,
    three_digits,
)
from flipsearch.reporting.outcomes import (
    SCORECARD_PAGE,
    ShownAnswer,
    TrainedUnder,
    counts_after,
    kinds_bar,
    loss_ends,
    page_links,
    shown_answer,
    study_links,
    training_verdict,
)
from flipsearch.reporting.page_data import (
    answers_data,
    examples_of,
    packed,
    page_rows,
    static_rows,
    study_times,
    table_data,
)
from flipsearch.reporting.study_file import ORACLE
from flipsearch.reporting.verdict import folder_of, verdict

PICTURE_TOP, PICTURE_SCALE = 320, 1.55
"""Pixels of a picture beside its drawings, and for each unit of these."""
SCRIPTS = ("page.js", "table.js", "answers.js", "matrix.js", "start.js")


def leaderboard_page(study: Study, ledger: Ledger | None = None, trained: Sequence[TrainedUnder] = ()) -> str:
    """Return leaderboard.html for a study; the answers on it are from its ledger, and without one there are none.

    `trained` are the checkpoints that were trained under its contexts.
    """
    columns = columns_of(study, "page")
    by_section = {section: [column for column in columns if column.section == section] for section in get_args(Section)}
    shown = by_section["leaderboard"]
    rows, answers = page_rows(study, shown), answers_data(study, ledger) if ledger else None
    table = table_data(study, shown, rows)
    folder = files("flipsearch.reporting") / "scripts"
    script = "\n" + "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    best = study.best
    return render(
        "leaderboard.html",
        study=study,
        place=typed_path(folder_of(study)),
        verdict=verdict(study),
        trained=trained,
        best=best,
        kinds=kinds_cell(best.final, study) if best else None,
        columns=by_section,
        rows=static_rows(rows),
        all_rows=rows,
        row_of={row.trial.number: row for row in rows},
        table_data=packed(table),
        has_matrix=len(table["matrix"]["prompts"]) > 1,
        examples=examples_of(study, best, answers) if best and answers else [],
        answer_rows=[row for row, _ in answers["contexts"]] if answers else [],
        answer_data=packed(answers) if answers else "",
        figures=figures.figures_of(study, names_of(study)),
        box=figures,
        notes=notes_by_kind(study),
        num_prompts=Counter((prompt.split or "given", prompt.kind) for prompt in study.prompts),
        times=study_times(study, ledger) if ledger else None,
        settings=format.setting_rows(study.settings),
        is_search=study.kind is StudyKind.SEARCH,
        oracle=ORACLE,
        min_labels=MIN_LABELS,
        shared_errors=format.SHARED_ERRORS,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def picture_page(study: Study) -> tuple[str, int]:
    """Return a page with the verdict of a study and its main pictures, and its height in pixels."""
    shown = figures.figures_of(study, names_of(study))[:2]
    height = PICTURE_TOP + int(PICTURE_SCALE * max((figure.height for figure in shown), default=0))
    return render("picture.html", study=study, verdict=verdict(study), figures=shown, box=figures), height


def render(template: str, **values: Any) -> str:
    """Return a page made of a template: every value is escaped; StudyError for an unknown name, as of a setting."""
    try:
        return _environment().get_template(template).render(values)
    except UndefinedError as error:
        why = f"something is missing that it shows ({one_line(error)})"
        raise StudyError(f"no page can be made: {why}; if a file was edited, run its command again.") from error


@cache
def _environment() -> Environment:
    """Return what compiles each template once: a page that is written after each rung must cost little."""
    jinja = Environment(
        loader=PackageLoader("flipsearch.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=format.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = (format.percent, format.points, format.low_high, format.interval, format.unbroken)
    jinja.filters |= {function.__name__: function for function in shown} | {"tenth": "{:.1f}".format}
    return jinja


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
CURVES = (
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
    for plan in CURVES:
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


def training_page(
    run: TrainingRun,
    log: Sequence[LogLine],
    answers: Sequence[LoggedAnswer] = (),
    folder: Path = Path(),
    card: Scorecard | None = None,
) -> str:
    """Return training.html, which lies in `folder`: a finished training, its log, and the answers that were logged.

    `card` is what an evaluation of the checkpoint found, if there was one.
    """
    steps = merge_steps(log)
    scorecard = page_links([("scorecard", SCORECARD_PAGE)], folder) if card else []
    return render(
        "training.html",
        run=run,
        notes=notes_by_kind(run, usual="warning"),
        verdict=training_verdict(run, steps, answers, card, folder),
        is_evaluated=card is not None,
        links=[*scorecard, *study_links(run, folder)],
        kinds=_kinds_by_step(answers),
        samples=_samples(answers),
        method=METHODS[run.method].summary + ".",
        control=control_note(run),
        headline=_headline(run, steps),
        prompts=prompts_sentence(run),
        charts=training_curves(steps, METHODS[run.method].is_supervised),
        is_smoothed=len(steps) > charts.SMOOTH_FROM,
        box=charts,
        settings=setting_rows(run.settings),
    )


def _kinds_by_step(answers: Sequence[LoggedAnswer]) -> list[tuple[str, Cell, Cell]]:
    """Return a row for each logged step: its name, and the kinds of the answers to harmful and to benign prompts."""
    places = dict.fromkeys((answer.step, answer.under_context) for answer in answers)
    rows = []
    for step, under_context in sorted(places, key=lambda place: place[::-1]):
        counts = [counts_after(answers, kind, step, under_context) for kind in KINDS]
        harmful, benign = (kinds_bar(count, sum(count.values())) for count in counts)
        rows.append((_step_name(step, under_context), harmful, benign))
    return rows


def _step_name(step: int, under_context: bool) -> str:
    return "under the context" if under_context else f"step {step:,}" if step else "before the training"


def _samples(answers: Sequence[LoggedAnswer]) -> list[tuple[str, Kind, str, list[ShownAnswer]]]:
    """Return prompt, its kind, the first and last kind of answer, and the answers, of equal ones in a row the first."""
    samples = []
    for prompt, kind in dict.fromkeys((answer.prompt, answer.kind) for answer in answers):
        own = [answer for answer in answers if (answer.prompt, answer.kind) == (prompt, kind)]
        shown: list[ShownAnswer] = []
        for logged in sorted(own, key=lambda answer: (answer.under_context, answer.step)):
            answer = shown_answer(_step_name(logged.step, logged.under_context), logged.answer, kind)
            if shown and not logged.under_context and replace(answer, title=shown[-1].title) == shown[-1]:
                shown[-1] = replace(shown[-1], same_until=answer.title)
            else:
                shown.append(answer)
        student = [answer.answer.kind for answer in own if not answer.under_context]
        change = f"{student[0]} → {student[-1]}" if len(student) > 1 else "".join(student)
        samples.append((prompt, kind, change, shown))
    return samples


def _headline(run: TrainingRun, steps: Sequence[LogLine]) -> list[tuple[str, str, str]]:
    """Return (name, figure, remark) of the boxes at the top of the page."""
    epochs = [line["epoch"] for line in steps if "epoch" in line]
    passes = f"{three_digits(epochs[-1])} {'epoch' if epochs[-1] == 1 else 'epochs'}" if epochs else ""
    sampling_s = sum(line.get("rollout_s", 0.0) for line in steps)
    boxes = [
        ("optimizer steps", f"{run.num_steps:,}", passes),
        ("tokens learnt from", f"{run.num_tokens:,}", f"in {run.num_rollouts:,} completions"),
        ("training time", duration(run.wall_s), f"{duration(sampling_s)} in rollouts" if sampling_s else ""),
    ]
    if points_of(steps, "loss"):
        boxes.append((f"{METHODS[run.method].loss}, nats", loss_ends(steps), "mean of the first and the last fifth"))
    return boxes
