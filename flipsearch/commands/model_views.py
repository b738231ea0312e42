"""What a person sees of a model and of a judge: answers side by side, agreement with human labels, what to label."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from flipsearch.commands.console import NUM_SHOWN, figures, plain_table, print_lines, print_table, print_wrapped
from flipsearch.core.display import printable
from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Label
from flipsearch.core.studies import MIN_LABELS
from flipsearch.reporting.format import DASH, percent, with_interval
from flipsearch.results import JudgeCheck, JudgeFit, LabellingResult

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.api.chat import ChatSession
    from flipsearch.judging.accuracy import JudgeAccuracy, JudgeStress

WITHOUT, UNDER = "without a context", "with the context"


def typed_prompts() -> Iterator[str]:
    """Yield the lines of the input that hold anything, until it ends; in a terminal, after a sign that it waits."""
    is_typed = sys.stdin.isatty()
    if is_typed:
        sys.stderr.write("One prompt per line; each is a conversation of its own. End with Ctrl-D.\n")
    while True:
        if is_typed:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if prompt := line.strip("\ufeff").strip():  # a piped file may begin with a byte order mark
            yield prompt


def show_chat(chat: "ChatSession") -> None:
    """Print the answers to each prompt as soon as they are there."""
    with chat:
        for prompt in typed_prompts():
            pair = chat.ask(prompt)
            print_wrapped(f"\n{pair.prompt}", style="bold")
            columns = (Column(name, ratio=1, overflow="fold") for name in (WITHOUT, UNDER))
            table = plain_table(*columns, expand=True)
            table.add_row(*(Text(printable(text.strip())) for text in (pair.without, pair.under)))
            print_table(table)
            sys.stdout.flush()


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


def too_few_labels(sensitivity: Estimate, specificity: Estimate) -> str:
    """Return why labels correct no rate."""
    return (
        f"No rate is corrected for the judge's errors: {sensitivity.n:,} answers labelled unsafe and {specificity.n:,} "
        f"safe, at least {MIN_LABELS} of each are needed"
    )
