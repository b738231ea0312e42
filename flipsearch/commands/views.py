"""What a person sees of each result: its figures, what is needed to read them, and where the files lie."""

import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from flipsearch.commands.console import (
    NUM_SHOWN,
    TONES,
    plain_table,
    print_figures,
    print_lines,
    print_table,
    print_wrapped,
    show_verdict,
)
from flipsearch.core.files import printable, shortened
from flipsearch.core.measurements import Estimate
from flipsearch.core.studies import MIN_LABELS, EarlierBest, Study, StudyKind, Trial
from flipsearch.reporting.columns import Column as ShownColumn
from flipsearch.reporting.columns import columns_legend, columns_of, kinds_legend
from flipsearch.reporting.format import DASH, SHARED_ERRORS, names_of, notes_by_kind, percent, with_interval
from flipsearch.reporting.verdict import split_in_words, verdict
from flipsearch.results import (
    ContextCheck,
    Diagnosis,
    SearchResult,
)
from flipsearch.templating.library import BROKEN

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.ledger.check import LedgerCheck
    from flipsearch.reporting.compare import Comparison


LONGEST_NAME = 52
"""Characters of a context's name in a row."""
DECIDING = ("rank", "context", "refusals", "contraction_marked")
"""Columns that leave a narrow table last: they say why a context that flips much is not the winner."""
NAME_WIDTH, GAP = 18, 2
"""Characters that a table leaves for them at least, and those between two columns."""
LONGEST_CHANGE = 17
"""Of what an operator changed, so that it fits in one line of 80 columns."""
STATES = {
    "running": "may still see more prompts",
    "stopped": "left behind early, as others promised as much",
    "pruned": "ruled out early",
}


def show_study(result: SearchResult) -> None:
    """Print the leaderboard and where the files are."""
    study, folder, best = result.study, result.folder, result.best_path
    if result.was_finished:
        print_wrapped(f"The study {study.name} was finished before, with the same settings: nothing was generated.\n")
    print_table(leaderboard_table(study))
    for legend in legends(study):
        print_wrapped(legend, style="dim")
    if study.winner:
        for line in winner_lines(study.winner):
            print_wrapped(line)
    notes = notes_by_kind(study)
    for note in (*notes["warning"], *judge_lines(study), *notes["fact"], *notes["method"]):
        print_wrapped(f"Note: {note}")
    if study.winner:
        use = "Best context" if study.is_confirmed else "Not confirmed, so not to train on; the best of those tried"
        print_wrapped(f"\n{use} ({study.winner.context.placement}):", style="bold")
        print_wrapped(study.winner.context.text)
        print_lines("")
    if best:
        print_wrapped(f"{'best context':<14}{best}  (card: {best.with_suffix('.json')})")
        for line in companion_lines(study, best):
            print_wrapped(line)
    print_wrapped(f"{'leaderboard':<14}{folder / 'leaderboard.html'}")
    if result.earlier and study.kind is StudyKind.SEARCH:
        print_wrapped(earlier_line(result.earlier, result))
    show_verdict(verdict(study))


def earlier_line(earlier: EarlierBest, result: SearchResult) -> str:
    """Return what became of the winning text that another study left in the place of this one's."""
    whose = f"the winner of the study {earlier.study}" if earlier.study else "a text of no study"
    if not result.is_kept:
        is_there = (result.folder.parent / earlier.study / "best.txt").is_file() if earlier.study else False
        where = f"; it is still in {result.folder.parent / earlier.study / 'best.txt'}" if is_there else ""
        return f"{'replaced':<14}{earlier.path}, which was {whose}{where}"
    why = "flips more of the same prompts" if earlier.flips_more else "no context of this search was confirmed"
    return f"{'kept':<14}{earlier.path}, {whose}: {'it ' * earlier.flips_more}{why}"


def leaderboard_table(study: Study) -> Table:
    """Return the best arms and all placebos as a table that fits into 80 columns; see reporting/columns.py."""
    arms, placebos = ([trial for trial in study.trials if trial.role == role] for role in ("arm", "placebo"))
    columns, table = _that_fit(study), plain_table()
    for column in columns:
        wraps = column.format.wraps
        table.add_column(column.terminal or "", justify="left" if wraps else "right", no_wrap=not wraps)
    names = names_of(study)

    def cells(trial: Trial) -> list[Text]:
        name = row_name(trial, names[trial.number])
        return [Text(name if column.name == "context" else column.text(study, trial)) for column in columns]

    for trial in arms[:NUM_SHOWN]:
        style = TONES[verdict(study).tone] if trial == study.winner else ""
        table.add_row(*cells(trial), style=style)
    if len(arms) > NUM_SHOWN:
        table.add_row("", Text(f"… {len(arms) - NUM_SHOWN} on the page", style="dim"))
    for trial in placebos:
        table.add_row(*cells(trial), style="dim")
    return table


def _shown(study: Study) -> list[Trial]:
    """Return the trials in the table: the best arms, and all placebos."""
    arms = [trial for trial in study.trials if trial.role == "arm"]
    return [*arms[:NUM_SHOWN], *(trial for trial in study.trials if trial.role == "placebo")]


def _that_fit(study: Study) -> list[ShownColumn]:
    """Return the columns that leave NAME_WIDTH for the names of contexts; others, from the right, are on the page.

    Names and the flip rate with its interval stay in any terminal.
    """
    columns, trials = columns_of(study, "terminal"), _shown(study)

    def width(column: ShownColumn) -> int:
        if column.name == "context":
            return NAME_WIDTH
        lines = [line for trial in trials for line in column.text(study, trial).split("\n")]
        return max(map(len, (column.terminal or "", *lines)))

    widths = {column.name: width(column) for column in columns}
    room = get_terminal_size().columns + GAP - sum(width + GAP for width in widths.values())
    rates = [column.name for column in columns if "(95 %)" in (column.terminal or "")]
    droppable = [name for name in reversed(widths) if name not in (*rates, "context")]
    for name in sorted(droppable, key=DECIDING.__contains__):
        if room >= 0:
            break
        room += widths.pop(name) + GAP
    return [column for column in columns if column.name in widths]


def row_name(trial: Trial, name: str) -> str:
    """Return what a row of the terminal is called: a template, an operator or a beginning, with placement and state.

    What an operator changed, or the state, stands in a line of its own.
    """
    context = trial.context
    state = f" ({trial.state})" if trial.state in STATES else ""
    if context.operator and trial.role == "arm":
        change = shortened(name.partition(": ")[2].split(" · ")[0], LONGEST_CHANGE)
        return f"{context.operator} {context.placement}\n{state.strip() or change}".rstrip()
    is_plain = context.template and context.text.strip() and (trial.role == "placebo" or not context.parents)
    shown = context.template.replace("_", " ") if is_plain and trial.role == "placebo" else name
    shown = shortened(shown.removesuffix(f" · {context.placement}"), LONGEST_NAME)
    place = "" if shown.endswith(context.placement) or trial.role == "placebo" else f" {context.placement}"
    return f"{shown}{place}{state}"


def legends(study: Study) -> list[str]:
    """Return what the columns and the marks in the table mean, as far as they are there."""
    columns, shown = _that_fit(study), _shown(study)
    rows = [f"{state}: {STATES[state]}" for state in STATES if any(trial.state == state for trial in shown)]
    if any(trial.context.operator and trial.role == "arm" for trial in shown):
        rows.append("+, −: what an operator, e.g. crossover, added to an earlier context or took out")
    if any(t.role == "placebo" and t.context.text for t in shown):
        rows.append("placebo: a text without safety content")
    lines = [columns_legend(columns)]
    lines += [kinds_legend(study)] if any(column.name == "kinds" for column in columns) else []
    if any(map(study.is_over_cap, shown)):
        lines.append(f"! over the cap on refused benign prompts, {study.refusal_cap}")
    if any(map(study.is_contracted, shown)):
        lines.append(f"! over the cap on benign answers lost, {100 * study.settings['max_contraction']:g} %")
    return [*lines, "; ".join(rows)] if rows else lines


def winner_lines(winner: Trial) -> list[str]:
    """Return the winner's net flip rate, what the order of its words adds, and its added refusals, with intervals."""
    figures = (
        ("net", winner.net, "more flips than under neutral text or no context, whichever flips more"),
        ("word order", winner.late.word_order, "more flips than with the same words in another order"),
        ("refusals", winner.final.added_refusals, "more benign prompts refused than without a context"),
    )
    measured = [(name, figure, what) for name, figure, what in figures if figure and figure.n]
    return [f"{name:<12}{with_interval(figure, 'points')} points, {what}" for name, figure, what in measured]


def companion_lines(study: Study, best: Path) -> list[str]:
    """Return what else is written with the winning text: the portfolio, the context for benign prompts or why none."""
    lines = []
    if study.portfolio:
        num, path = len(study.portfolio.context_ids), best.with_suffix(".portfolio.json")
        together = f"any of {num} flips {with_interval(study.portfolio.confirm, 'percent')}"
        lines.append(f"{'portfolio':<14}{path}  ({together if num > 1 else 'the best context alone'})")
    if study.benign and study.benign.context:
        refused = percent(study.benign.over_refusal_rate.value, "%")
        without = percent(study.base_over_refusal["confirm"].value, "%")
        path = best.with_suffix(".benign.txt")
        lines.append(f"{'for benign':<14}{path}  (refused {refused}, without {without})")
    elif study.benign:
        lines.append(f"{'for benign':<14}none. {study.benign.reason}")
    return lines


def judge_lines(study: Study) -> list[str]:
    """Return the best flip rate corrected for the judge's errors, and its risk reduction, where they are known."""
    best = (study.winner or study.trials[0]).late
    lines = []
    if study.judge_error and not study.judge_error.corrects:
        lines.append(f"{too_few_labels(study.judge_error.sensitivity, study.judge_error.specificity)}.")
    if study.judge_error and study.judge_error.corrects and best.corrected and best.corrected.value is None:
        lines.append(
            "The flip rate is not corrected for the judge's errors: by these labels it may be no better than chance "
            f"({percent(study.judge_error.sensitivity.value)} of the unsafe answers right, "
            f"{percent(study.judge_error.specificity.value)} of the safe ones)."
        )
    if study.judge_error and best.corrected and best.corrected.value is not None:
        whose = "this study's answers among them" if study.judge_error.own_answers else "none of this study's answers"
        num = sum(study.judge_error.sources.values())
        rate = with_interval(best.corrected, "percent")
        corrected = f"Corrected for the judge's errors the best flip rate is {rate}, by {num:,} labels ({whose})."
        lines.append(f"{corrected} {SHARED_ERRORS}")
    if best.risk_reduction and best.risk_reduction.value is not None:
        lines.append(f"By human labels its risk reduction is {with_interval(best.risk_reduction, 'points')} points.")
    return lines


def show_ledger(check: "LedgerCheck") -> None:
    """Print what a ledger holds, what was not finished, and what is wrong with it."""
    failed = f"{check.num_errors:,} failed, {check.num_filtered:,} filtered, {check.num_unjudged:,} not judged"
    lines = [f"{check.num_rollouts:>9,} rollouts ({failed})", f"{check.num_verdicts:>9,} verdicts"]
    for name, counts in (("model", check.by_model), ("context", check.by_context), ("judge", check.by_judge)):
        lines += [f"{num:>9,} {name} {key}" for key, num in list(counts.items())[:NUM_SHOWN]]
        if len(counts) > NUM_SHOWN:
            lines.append(f"{'…':>9} {len(counts) - NUM_SHOWN:,} more (--json shows all)")
    if check.in_flight and check.in_flight.count:
        work = f"{check.in_flight.count:,} rollouts ({check.in_flight.phase})"
        lines.append(
            f"{work} are in flight: a process works here now."
            if check.in_flight.is_running
            else f"{work} were in flight when the last process ended; the same command makes them again."
        )
    lines += [f"Wrong: {fault.count:,} {fault.kind}, e.g. {fault.example}" for fault in check.faults]
    lines.append(f"{'sound' if check.is_sound else 'not sound':<14}{check.place}")
    print_lines(*lines)


def show_comparison(comparison: "Comparison") -> None:
    """Print the flip rate of each shared context in each study, paired differences, and whether the ranking holds."""
    rows = []
    for row in comparison.shared[:NUM_SHOWN]:
        rates = [with_interval(trial.final.flip_rate, "percent") if trial else DASH for trial in row.trials]
        rows.append([shortened(row.name, LONGEST_NAME), *rates])
    print_figures(["context", *(f"[{number}]" for number in range(1, 1 + len(comparison.studies)))], rows)
    for number, study in enumerate(comparison.studies, start=1):
        settings = study.settings
        print_wrapped(
            f"[{number}] {study.name}: {settings['model']}, judge {settings['judge']}, seed {settings['seed']}"
        )
    print_wrapped("\nDifferences to the first study that has the context, in points, paired by prompt:")
    for row in comparison.shared[:NUM_SHOWN]:
        shown = [
            f"[{number}] {with_interval(figure, 'points')}, n {figure.n}"
            for number, figure in enumerate(row.differences, start=1)
            if figure
        ]
        print_wrapped(f"- {shortened(row.name, LONGEST_NAME)}: {'; '.join(shown) or 'no prompt is unsafe in both'}")
    if len(comparison.shared) > NUM_SHOWN:
        print_lines(f"… {len(comparison.shared) - NUM_SHOWN:,} more shared contexts (--json, --to FILE)")
    places = {study.name: f"[{number}]" for number, study in enumerate(comparison.studies, start=1)}
    print_wrapped("\nThe best context of each study in the others:")
    for transfer in comparison.transfers:
        if transfer.source != transfer.target:
            rate = with_interval(transfer.trial.final.flip_rate, "percent") if transfer.trial else "not measured"
            behind = f", {with_interval(transfer.behind, 'points')} to the best there" if transfer.behind else ""
            ranks = transfer.ranks
            alike = f"; rank correlation {ranks.value:.2f} ({ranks.low:.2f} to {ranks.high:.2f})" if ranks else ""
            between = f"{places[transfer.source]} in {places[transfer.target]}"
            print_wrapped(f"- {between}: {rate}{behind}; {transfer.num_shared:,} shared{alike}")
    show_verdict(comparison.verdict)


def show_check(check: ContextCheck) -> None:
    """Print a line for each criterion, and where the study lies."""
    for criterion in check.criteria:
        style = "" if criterion.is_met else "bold red"
        print_wrapped(f"{'met' if criterion.is_met else 'NOT MET':<9}{criterion.text}  [{criterion.context}]", style)
    study = check.result.study
    source, split = study.settings.get("prompts") or "files", split_in_words(study.trials[0].final.split)
    print_wrapped(f"\nmodel {study.settings['model']}, judge {study.settings['judge']}, {split} ({source})")
    print_wrapped(f"{'leaderboard':<14}{check.result.folder / 'leaderboard.html'}")


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was found, section by section, with a mark before each line."""
    marks = {"ok": "+", "note": "!", "missing": "-", "failed": "x"}
    table, section = plain_table(show_header=False), ""
    for check in diagnosis.checks:
        shown, section = "" if check.section == section else check.section, check.section
        table.add_row(*(Text(printable(cell)) for cell in (shown, marks[check.state], check.name, check.text)))
    print_table(table)
    num_failed = sum(check.state == "failed" for check in diagnosis.checks)
    summary = f"{num_failed} of the checks failed." if num_failed else "No check failed."
    print_lines("", "+ works   ! works, with a note   - not here   x fails", summary)


CONTEXT_HEADINGS = {
    "context": "CONTEXTS, which a search tries",
    "benign": "CONTEXTS FOR BENIGN PROMPTS, which training may use",
    "placebo": "PLACEBOS, which show what a text without safety content does",
}
CONTEXTS_FOOT = (
    "A name goes to `search --template NAME` or `score NAME`; `--contexts PATH` adds templates of your own. The pocket "
    "model has a set in its own vocabulary: `list contexts --model pocket`."
)


def show_contexts(rows: list[dict[str, str]]) -> None:
    """Print each template with its length, variants and placements, what it says and where the idea comes from."""
    width, longest, indent = (
        min(get_terminal_size().columns, 120),
        max(len(row["name"]) for row in rows if row["role"] != BROKEN),
        "    ",
    )
    for role, heading in CONTEXT_HEADINGS.items():
        listed = [row for row in rows if row["role"] == role]
        if not listed:
            continue
        print_lines(f"{heading} ({len(listed)})", "")
        for row in listed:
            variants = "" if role == "placebo" else f"{row['variants']} variants, "
            print_lines(f"{row['name']:{longest}}  {row['words']} words, {variants}{row['placements']}")
            for text in (row["description"], row["source"]):
                print_lines(textwrap.fill(printable(text), width, initial_indent=indent, subsequent_indent=indent))
        print_lines("")
    broken = [row for row in rows if row["role"] == BROKEN]
    if broken:
        print_lines(f"BROKEN FILES, which no search could read ({len(broken)})", "")
        for row in broken:
            print_lines(textwrap.fill(printable(row["description"]), width, subsequent_indent=indent))
        print_lines("")
    print_lines(textwrap.fill(CONTEXTS_FOOT, width))


def show_rows(rows: list[dict[str, str]]) -> None:
    """Print rows of name and description as a table."""
    table = plain_table(Column(no_wrap=True), Column(overflow="fold"), show_header=False)
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in ("name", "description")))
    print_table(table)


def too_few_labels(sensitivity: Estimate, specificity: Estimate) -> str:
    """Return why labels correct no rate."""
    return (
        f"No rate is corrected for the judge's errors: {sensitivity.n:,} answers labelled unsafe and {specificity.n:,} "
        f"safe, at least {MIN_LABELS} of each are needed"
    )
