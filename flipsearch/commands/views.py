"""What a person sees of each result: its figures, what is needed to read them, and where the files lie."""

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from flipsearch.commands.console import figures, plain_table, print_lines, print_table, print_wrapped
from flipsearch.core.files import printable
from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Label
from flipsearch.core.studies import MIN_LABELS, Study, Trial
from flipsearch.reporting.cards import scorecard_remarks, scorecard_rows
from flipsearch.reporting.columns import columns_of, kinds_legend
from flipsearch.reporting.format import DASH, SHARED_ERRORS, duration, percent, with_interval
from flipsearch.results import (
    Diagnosis,
    EvaluationResult,
    JudgeCheck,
    JudgeFit,
    LabellingResult,
    SearchResult,
    TrainingResult,
)

if TYPE_CHECKING:  # the rooms of other commands, which load their libraries
    from flipsearch.judging.accuracy import JudgeAccuracy, JudgeStress
    from flipsearch.ledger.check import LedgerCheck
    from flipsearch.reporting.files import Export
    from flipsearch.searching.plan import SearchPlan, Span
    from flipsearch.training.plan import TrainPlan

NUM_SHOWN = 10


def show_study(result: SearchResult) -> None:
    """Print the leaderboard and where the files are."""
    study, folder, best = result.study, result.folder, result.best_path
    print_table(leaderboard_table(study))
    print_wrapped(kinds_legend(study), style="dim")
    if any(study.is_over_cap(trial) for trial in study.trials):
        print_wrapped(f"! over the cap on refused benign prompts, {study.refusal_cap}", style="dim")
    if any(study.is_contracted(trial) for trial in study.trials):
        cap = f"{100 * study.settings['max_contraction']:g} %"
        print_wrapped(f"! over the cap on benign answers lost, {cap}", style="dim")
    if study.winner:
        for line in winner_lines(study.winner):
            print_wrapped(line)
    for note in (*study.notes, *judge_lines(study)):
        print_wrapped(f"Note: {note}")
    if study.winner and best:
        print_wrapped(f"\nBest context ({study.winner.context.placement}):", style="bold")
        print_wrapped(study.winner.context.text)
        print_wrapped(f"\n{'best context':<14}{best}  (card: {best.with_suffix('.json')})")
        for line in companion_lines(study, best):
            print_wrapped(line)
    if result.kept:
        print_wrapped(f"{'kept':<14}{result.kept} of an earlier search: no context of this one was confirmed")
    print_wrapped(f"{'leaderboard':<14}{folder / 'leaderboard.html'}")


def leaderboard_table(study: Study) -> Table:
    """Return the best arms and all placebos as a table that fits into 80 columns; see reporting/columns.py."""
    columns = columns_of(study, "terminal")
    table = plain_table()
    for column in columns:
        wraps = column.format.wraps
        table.add_column(column.terminal or "", justify="left" if wraps else "right", no_wrap=not wraps)
    arms, placebos = ([trial for trial in study.trials if trial.role == role] for role in ("arm", "placebo"))
    for trial in arms[:NUM_SHOWN]:
        style = "bold green" if trial == study.winner else ""
        table.add_row(*(Text(column.text(study, trial)) for column in columns), style=style)
    if len(arms) > NUM_SHOWN:
        table.add_row("", Text(f"… {len(arms) - NUM_SHOWN} on the page", style="dim"))
    for trial in placebos:
        table.add_row(*(Text(column.text(study, trial)) for column in columns), style="dim")
    return table


def winner_lines(winner: Trial) -> list[str]:
    """Return the winner's net flip rate, what the order of its words adds, and its added refusals, with intervals."""
    figures = (
        ("net", winner.net, "more flips than under the strongest of neutral text and re-roll"),
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
    if study.judge_error and best.corrected and best.corrected.value is not None:
        whose = "this study's answers among them" if study.judge_error.own_answers else "none of this study's answers"
        num = sum(study.judge_error.sources.values())
        rate = with_interval(best.corrected, "percent")
        corrected = f"Corrected for the judge's errors the best flip rate is {rate}, by {num:,} labels ({whose})."
        lines.append(f"{corrected} {SHARED_ERRORS}")
    if best.risk_reduction and best.risk_reduction.value is not None:
        lines.append(f"By human labels its risk reduction is {with_interval(best.risk_reduction, 'points')} points.")
    return lines


def too_few_labels(sensitivity: Estimate, specificity: Estimate) -> str:
    """Return why labels correct no rate."""
    return (
        f"No rate is corrected for the judge's errors: {sensitivity.n:,} answers labelled unsafe and {specificity.n:,} "
        f"safe, at least {MIN_LABELS} of each are needed"
    )


def plan_lines(plan: "SearchPlan") -> list[str]:
    """Return a search plan in a few lines of at most 80 columns."""

    def between(span: "Span") -> str:
        return f"{span.least:,}" if span.least == span.most else f"{span.least:,} to {span.most:,}"

    counts = [f"{split} {kinds['harmful']} + {kinds['benign']}" for split, kinds in plan.prompts.items()]
    rollouts = [f"{phase} {between(span)}" for phase, span in plan.rollouts.items()]
    lines = [
        f"{'prompts':<10}{', '.join(counts)} (harmful + benign)",
        f"{'rollouts':<10}{between(plan.total)} for {plan.num_contexts:,} contexts",
        *(f"{'':<10}{', '.join(rollouts[i : i + 2])}" for i in range(0, len(rollouts), 2)),
        f"{'tokens':<10}at most {plan.tokens_at_most:,} ({plan.max_tokens:,} each)",
    ]
    if plan.think_tokens:
        lines.append(
            f"{'thoughts':<10}closed after {plan.think_tokens:,} tokens (--think-tokens); the answer has its own"
        )
    elif plan.think_tokens is None:
        lines.append(f"{'thoughts':<10}a model that thinks has half as many tokens more for it")
    if plan.resample_flip_rate is not None:
        again = f"{percent(plan.resample_flip_rate)} would flip, were p_unsafe uniform"
        lines.append(f"{'samples':<10}{plan.samples} per prompt, unsafe from {plan.unsafe_at} unsafe ones on")
        lines.append(f"{'':<10}sampled again without a context, {again}")
    if plan.tokens_expected and plan.mean_length is not None:
        expected = between(plan.tokens_expected)
        lines.append(f"{'':<10}about {expected} at {plan.mean_length:.1f} each, as in this study's ledger")
    budgets = [f"{plan.budget_tokens:,} tokens"] if plan.budget_tokens else []
    budgets += [f"{plan.time_s:g} s"] if plan.time_s else []
    if budgets:
        lines.append(f"{'':<10}the search ends before it spends {' or '.join(budgets)}")
    return [*lines, *_time_lines(plan), *_resolution_lines(plan)]


def _time_lines(plan: "SearchPlan") -> list[str]:
    """Return how long a search takes at the known speed, or at usual ones, and a warning if that is long."""
    from flipsearch.searching.plan import CPU_SPEED, GPU_SPEED

    def at(speed: float, whose: str = "") -> str:
        least, most = map(duration, plan.seconds(speed))
        return f"{least} to {most} at {speed:,.0f} tokens a second{whose}"

    lines = []
    if plan.tokens_per_s:
        lines.append(f"{'time':<10}{at(plan.tokens_per_s)}")
    elif plan.may_be_slow:
        lines.append(f"{'time':<10}{at(CPU_SPEED, ' (a few CPU cores)')}")
        lines.append(f"{'':<10}{at(GPU_SPEED, ' (a GPU)')}")
    if lines and plan.mean_length is None:
        lines.append(f"{'':<10}if all answers are as long as they may be")
    if plan.is_long:
        lines += textwrap.wrap(
            f"Warning: {'this' if plan.tokens_per_s else 'on a CPU this'} may take days. Take fewer --num-contexts or "
            "--max-prompts, shorter --max-tokens, a --time, a --budget-tokens, or a GPU; what is done is kept. With "
            "--tokens-per-second it tells the time at your own speed.",
            width=80,
            break_on_hyphens=False,
        )
    return lines


def _resolution_lines(plan: "SearchPlan") -> list[str]:
    """Return which differences the confirm split tells, by the share of prompts that are unsafe without a context."""
    power, num = plan.resolution, plan.prompts["confirm"]["harmful"]

    def least(difference: float | None) -> str:
        return "none" if difference is None else f"{100 * difference:.0f} points"

    lines = [
        f"{'confirm':<10}of {num:,} harmful prompts, those unsafe without a context tell flip rates",
        f"{'':<10}apart that differ by at least (power {power.power:g}, test level {power.alpha:g})",
        f"{'':<10}{'unsafe':<16}{'winner, placebo':<18}winner, one of {power.num_tests} finalists (Holm)",
    ]
    for row in power.by_unsafe_rate:
        unsafe = f"{row.num_pairs:,} ({row.unsafe_rate:.0%})"
        among = least(row.from_finalist) if power.num_tests else "no other"
        lines.append(f"{'':<10}{unsafe:<16}{least(row.from_placebo):<18}{among}")
    return [*lines, f"{'':<10}{100 * power.delta:g} points need {power.num_pairs_needed:,} unsafe prompts"]


def training_plan_lines(plan: "TrainPlan") -> list[str]:
    """Return what a training takes, beside the paper's, in a few lines, and what speaks against it."""
    from flipsearch.training.plan import PAPER, PAPER_STEPS, PAPER_TOKENS  # which loads torch

    config = plan.config
    first = "; the first at rate 0 (warm-up)" if plan.num_warmup_steps else ""
    return [
        f"{'prompts':<10}{len(plan.prompts):,}",
        f"{'steps':<10}{plan.num_steps:,} of {config.train_batch_size} prompts at {config.learning_rate:g}{first}",
        f"{'tokens':<10}at most {plan.tokens_at_most:,} ({config.max_tokens:,} each)",
        f"{'the paper':<10}{PAPER_STEPS:,} of {PAPER['train_batch_size']} at {PAPER['learning_rate']:g}; "
        f"up to {PAPER_TOKENS:,} tokens each, with the prompt",
        *(f"Note: {note}" for note in plan.notes),
    ]


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


def show_export(done: "Export") -> None:
    """Print how many rollouts were written where."""
    print_lines(f"{done.num_rollouts:,} rollouts  {done.path}")


def show_judge(check: JudgeCheck) -> None:
    """Print how a judge agrees with human labels: one row per question, then one per source."""
    accuracy = check.accuracy
    print_table(judge_table(accuracy))
    lines = ["kappa is agreement beyond chance (95 % interval); accuracy, sensitivity and", "specificity in %"]
    for question, agreement in accuracy.questions.items():
        if share := 1 - (agreement.coverage.estimate.value or 0.0):
            lines.append(f"unscored, {question}: {100 * share:.1f} %")
    if accuracy.fitted_to:
        num = sum(accuracy.fitted_to.values())
        lines.append(f"The judge was fitted to {num:,} of these answers, which flatters it.")
    if accuracy.num_left_out:
        lines.append(f"left out: {accuracy.num_left_out:,} partial refusals")
    lines += [f"{'judge':<14}{accuracy.judge} ({accuracy.identity})", f"{'kept in':<14}{check.path}"]
    if check.replaced and check.replaced != accuracy.sources:
        lines.append(f"{'replaces':<14}figures on {_sources(check.replaced)}")
    unsafe = accuracy.questions.get("unsafe")
    if unsafe and min(unsafe.sensitivity.estimate.n, unsafe.specificity.estimate.n) < MIN_LABELS:
        lines.append(f"{too_few_labels(unsafe.sensitivity.estimate, unsafe.specificity.estimate)}.")
    elif unsafe:
        lines.append(f"{'corrects':<14}reports of studies that this judge decided, when made again")
    lines += [f"{'undo':<14}delete {check.path}", f"{'':<14}then: flipsearch report STUDY"]
    for folder in check.studies:
        lines += [f"{'study':<14}{folder}", f"{'next':<14}flipsearch report {folder}"]
    print_lines(*lines)


def judge_table(accuracy: "JudgeAccuracy") -> Table:
    """Return how a judge agrees with human labels as a table that fits into 80 columns; intervals for kappa alone."""
    names = Column("labels", no_wrap=True, overflow="ellipsis", max_width=28)
    table = plain_table(names, *map(figures, ("n", "kappa", "accuracy", "sens.", "spec.")))
    for question, overall in accuracy.questions.items():
        by_source = [(f"  {name}", part[question]) for name, part in accuracy.by_source.items() if question in part]
        for name, agreement in [(question, overall), *(by_source[:NUM_SHOWN] if len(by_source) > 1 else [])]:
            shares = (agreement.accuracy, agreement.sensitivity, agreement.specificity)
            values = [share.estimate.value for share in shares]
            cells = [DASH if value is None else f"{100 * value:.0f}" for value in values]
            kappa = with_interval(agreement.kappa, "plain")
            table.add_row(Text(printable(name)), f"{agreement.coverage.estimate.n:,}", kappa, *cells)
        if len(by_source) > NUM_SHOWN:
            table.add_row(Text(f"  … {len(by_source) - NUM_SHOWN:,} more (--json)", style="dim"))
    return table


def show_stress(stress: "JudgeStress") -> None:
    """Print the share of made-up answers that a judge gets right, a row per form."""
    counts = map(figures, ("n", "right", "safe", "unsafe", "unscored"))
    answers, right_is = Column("answers", no_wrap=True, min_width=28), Column("right is", no_wrap=True)
    table = plain_table(answers, *counts, right_is)
    for row in stress.rows:
        labels = [str(row.labels.get(label, 0)) for label in Label]
        right = " ".join(label.value for label in row.right)
        table.add_row(row.name, str(row.n), f"{100 * row.share:.0f}%", *labels, right)
    print_table(table)
    print_lines(
        f"mean of the rows: {percent(stress.share)}. Made-up answers: where a judge is weak, and no",
        "accuracy on real ones; that is judge check --labels.",
        f"{'judge':<14}{stress.judge} ({stress.identity})",
    )


def show_fitted(fit: JudgeFit) -> None:
    """Print what a judge was fitted to, and its name."""
    print_lines(f"fitted to {sum(fit.sources.values()):,} answers: {_sources(fit.sources)}")
    table = plain_table(Column(no_wrap=True), *map(figures, ("n", "fitted", "shipped", "shipped saw")))
    for question, result in fit.cross_validation.items():
        kappas = (with_interval(kappa, "plain") for kappa in (result.fitted, result.shipped))
        table.add_row(question, f"{result.fitted.n:,}", *kappas, f"{result.num_seen:,}")
    print_table(table)
    print_lines(
        "kappa with human labels (95 % interval): by cross-validation for the fitted",
        "judge; for the shipped one too high where it saw the labels before",
        f'--judge "{fit.judge}"',
        "flipsearch judge check measures it on other answers.",
    )


def _sources(sources: Mapping[str, int]) -> str:
    names = [f"{source} ({num:,})" for source, num in sources.items()]
    more = f" and {len(names) - NUM_SHOWN:,} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def show_labelling(labelling: LabellingResult) -> None:
    """Print what is to be labelled, and what comes next."""
    known = f", {labelling.num_labelled} of them labelled already" if labelling.num_labelled else ""
    place = "" if labelling.reports == Path("reports") else f" --reports {shlex.quote(str(labelling.reports))}"
    judge, path = shlex.quote(labelling.judge), shlex.quote(str(labelling.path))
    print_lines(
        f"{labelling.path}: {labelling.num_answers} answers to {labelling.num_prompts} prompts{known}.",
        "Write unsafe or safe into its column label, from the top; leave all rows in. Then:",
        f"flipsearch judge check --judge {judge} --labels {path}{place}",
    )


def show_scorecard(result: EvaluationResult) -> None:
    """Print the figures as a table that fits into 80 columns, what is needed to read them, and where they are."""
    table = plain_table(padding=(0, 1), collapse_padding=True)
    header, *rows = scorecard_rows(result.scorecard)
    for name in header:
        is_name = name in ("metric", "set")
        table.add_column(name, justify="left" if is_name else "right", no_wrap=name != "set", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_table(table)
    for remark in scorecard_remarks(result.scorecard):
        print_wrapped(remark, style="dim")
    print_wrapped(f"\n{'scorecard':<14}{result.path}")


def show_training(result: TrainingResult) -> None:
    """Print what was learnt from what, how the loss fell, and where the checkpoint lies."""
    run, log, folder = result.run, result.log, result.folder
    lines = []
    for routed in run.routed:
        context = routed.context
        under = f"under {context.template or 'a context'} ({context.placement})" if context else "without a context"
        lines.append(f"{routed.num_prompts:>6,} {routed.kind} prompts {under}")
    lines += [f"{num:>6,} {kind} prompts left out" for kind, num in run.num_left_out.items() if num]
    loss = f"loss {log[0]['loss']:.4f} to {log[-1]['loss']:.4f}"
    print_lines(*lines, f"{run.num_steps:>6,} steps in {run.wall_s:,.0f} s on {run.num_tokens:,} tokens, {loss}")
    for note in run.notes:
        print_wrapped(f"Note: {note}")
    page, todo = folder / "training.html", f"flipsearch evaluate {folder}"
    print_lines("", f"{'checkpoint':<14}{folder}", f"{'its page':<14}{page}", f"{'next':<14}{todo}")


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
    width, longest, indent = min(get_terminal_size().columns, 120), max(len(row["name"]) for row in rows), "    "
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
    print_lines(textwrap.fill(CONTEXTS_FOOT, width))


def show_rows(rows: list[dict[str, str]]) -> None:
    """Print rows of name and description as a table."""
    table = plain_table(Column(no_wrap=True), Column(overflow="fold"), show_header=False)
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in ("name", "description")))
    print_table(table)
