"""What a person sees of a model, a training and a judge: answers side by side, scorecards, agreement with labels."""

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from flipsearch.commands.console import (
    NUM_SHOWN,
    TONES,
    figures,
    plain_table,
    print_figures,
    print_lines,
    print_table,
    print_wrapped,
    show_next_steps,
)
from flipsearch.commands.views import too_few_labels
from flipsearch.core.errors import StudyError
from flipsearch.core.files import printable
from flipsearch.core.records import Label
from flipsearch.core.settings import typed_path
from flipsearch.core.studies import MIN_LABELS
from flipsearch.core.trainings import PromptExport
from flipsearch.reporting.anatomy_page import CHECK_STATES, anatomy_verdict, preflight_verdict, visible_token
from flipsearch.reporting.cards import scorecard_remarks, scorecard_rows
from flipsearch.reporting.files import read_scorecard
from flipsearch.reporting.format import DASH, Unit, duration, percent, with_interval
from flipsearch.reporting.outcomes import scorecard_verdict, training_verdict
from flipsearch.reporting.pages import merge_steps
from flipsearch.reporting.sweep_page import caveats, group_title, prediction_rows, sweep_verdict, training_rows
from flipsearch.results import (
    AnatomyResult,
    EvaluationResult,
    JudgeCheck,
    JudgeFit,
    LabellingResult,
    PreflightResult,
    SweepResult,
    TrainingResult,
)

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.api.chat import ChatSession
    from flipsearch.judging.accuracy import JudgeAccuracy, JudgeStress
    from flipsearch.reporting.scorecard_page import ScorecardComparison

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
    lines += [f"{'undo':<14}delete {check.path}", f"{'':<14}then make the reports again"]
    for folder in check.studies:
        lines += [f"{'study':<14}{folder}", f"{'next':<14}flipsearch report {typed_path(folder)}"]
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
    """Print what was found, the figures in 80 columns, how to read them, where they are, and what to do next."""
    conclusion = scorecard_verdict(result.scorecard)
    print_wrapped(f"{conclusion.sentence}\n", style=TONES[conclusion.tone])
    header, *rows = scorecard_rows(result.scorecard)
    print_figures(header, rows, num_names=2, num_whole=1, least=8)
    for remark in scorecard_remarks(result.scorecard):
        print_wrapped(remark, style="dim")
    print_wrapped(f"\n{'scorecard':<14}{result.path}")
    print_wrapped(f"{'its page':<14}{result.page}")
    show_next_steps(conclusion)


def show_training(result: TrainingResult, said: Collection[str] = ()) -> None:
    """Print what a training did, from what it learnt, notes that were not `said`, where it lies, and what is next."""
    run, folder, card = result.run, result.folder, None
    with suppress(StudyError):
        card = read_scorecard(folder)
    conclusion = training_verdict(run, merge_steps(result.log), result.answers, card, folder)
    print_wrapped(f"{conclusion.sentence}\n", style=TONES[conclusion.tone])
    lines = []
    for routed in run.routed:
        context = routed.context
        under = f"under {context.template or 'a context'} ({context.placement})" if context else "without a context"
        lines.append(f"{routed.num_prompts:>6,} {routed.kind} prompts {under}")
    lines += [f"{num:>6,} {kind} prompts left out" for kind, num in run.num_left_out.items() if num]
    print_lines(*lines, f"{run.num_steps:>6,} steps in {duration(run.wall_s)}")
    for note in (note for note in run.notes if note not in said):
        print_wrapped(f"Note: {note}")
    print_lines("", f"{'checkpoint':<14}{folder}", f"{'its page':<14}{result.page}")
    show_next_steps(conclusion)


def show_anatomy(result: AnatomyResult) -> None:
    """Print where the context changes the model most, and where the page lies."""
    anatomy, said = result.anatomy, anatomy_verdict(result.anatomy)
    print_wrapped(said.sentence, style=TONES[said.tone])
    for line in said.basis:
        print_wrapped(f"- {line}")
    rows = []
    for token in anatomy.tokens[:5]:
        written, instead = (visible_token(text)[:24] for text in (token.token, token.instead))
        instead = "the same" if token.instead == token.token else instead
        rows.append((written, instead, f"{token.num:,}", f"{token.share:.1%}"))
    print_lines("")
    print_figures(("written", "under the context", "times", "share"), rows, num_names=2)
    print_wrapped("\u00b7 is a blank, \u21b5 a new line\n", style="dim")
    for depth, rate in anatomy.depth:
        shown = "none measured" if rate.value is None else f"{rate.value:.0%} of {rate.n}"
        print_lines(f"{f'flips after {depth} tokens':<26}{shown}")
    for note in anatomy.notes:
        print_wrapped(f"Note: {note}")
    print_lines("", f"{'page':<14}{result.folder / 'anatomy.html'}")
    show_next_steps(said)


def show_preflight(result: PreflightResult) -> None:
    """Print the verdict, each criterion, where the page lies, what would change the verdict, and how to train."""
    preflight, said = result.preflight, preflight_verdict(result.preflight, result.command)
    print_wrapped(said.sentence, style=TONES[said.tone])
    print_wrapped(f"{' '.join(said.basis)}\n")
    rows = [(check.name, CHECK_STATES[check.state], check.value, check.wanted) for check in preflight.checks]
    print_figures(("criterion", "state", "measured", "wanted"), rows, num_names=4)
    for note in preflight.notes:
        print_wrapped(f"Note: {note}")
    print_lines("", f"{'page':<14}{result.page}")
    show_next_steps(said)


def show_sweep(result: SweepResult, said: Collection[str] = ()) -> None:
    """Print which figure of the contexts predicts harm after training, the trainings, notes that were not `said`."""
    sweep, verdict = result.sweep, sweep_verdict(result.sweep)
    print_wrapped(verdict.sentence, style=TONES[verdict.tone])
    for line in verdict.basis:
        print_wrapped(f"- {line}")
    for group in sweep.groups:
        if not group.predictions:
            continue
        print_lines("", group_title(sweep, group))
        predicted = [(name, value, p, behind) for name, value, p, _, behind, _ in prediction_rows(group)]
        print_figures(("", "Spearman", "p", "against the best"), predicted)
    print_lines("")
    trained = [
        (name, method, share, harm, refused) for name, method, share, *_, harm, _, refused, _, _ in training_rows(sweep)
    ]
    print_figures(("context", "method", "data", "harm", "over-refusal"), trained, num_names=2)
    for note in (note for note in (*caveats(sweep), *sweep.notes) if note not in said):
        print_wrapped(f"Note: {note}")
    print_lines("", f"{'page':<14}{result.page}")
    show_next_steps(verdict)


def show_export(export: PromptExport) -> None:
    """Print how many prompts were written under contexts, and what the trainer has to be given."""
    print_lines(*(f"{name:<26}{text}" for name, text in export.facts().items()))
    for note in export.notes:
        print_wrapped(f"Note: {note}")


def show_checkpoints(compared: "ScorecardComparison") -> None:
    """Print which of several models is the safest, their figures beside the base's, and their differences."""
    said = compared.verdict
    print_wrapped(f"{said.sentence}\n", style=TONES[said.tone])
    rows = []
    for figure in compared.figures:
        unit: Unit = "points" if figure.is_change else "percent"
        rows.append(
            [figure.name, *(with_interval(rate, unit) if rate else "" for rate in (figure.base, *figure.rates))]
        )
    print_figures(["", "base", *(f"[{number}]" for number in range(1, 1 + len(compared.names)))], rows)
    for number, name in enumerate(compared.names, start=1):
        print_wrapped(f"[{number}] {name}")
    print_wrapped("\nDifferences to [1] in points, paired by prompt, with 95 % intervals:")
    for figure in compared.figures:
        shown = [f"[{n}] {with_interval(d, 'points')}" for n, d in enumerate(figure.differences, start=1) if d]
        if shown:
            print_wrapped(f"- {figure.name}: {'; '.join(shown)}")
    print_lines("")
    for line in said.basis:
        print_wrapped(f"- {line}")
    show_next_steps(said)
