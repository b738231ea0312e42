"""What a person sees in the terminal: progress bars on stderr, results and where the files lie on stdout.

Model output, prompts and contexts are printed as plain text: no markup, no control characters.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flipsearch.core.files import printable
from flipsearch.core.progress import Step
from flipsearch.core.records import Context, Estimate, Rate
from flipsearch.core.studies import Study, Trial

if TYPE_CHECKING:  # an error is one line, and waits for none of these
    from flipsearch.judging.accuracy import JudgeAccuracy
    from flipsearch.ledger.check import InFlight, LedgerCheck
    from flipsearch.reporting.rollout_table import Export
    from flipsearch.results import EvaluationResult, JudgeCheck, JudgeFit, LabellingResult, SearchResult, TrainingResult
    from flipsearch.searching.plan import SearchPlan, Span

Shown = TypeVar("Shown", bound="Result")


class Result(Protocol):
    """What a command returns."""

    def as_dict(self) -> dict[str, Any]:
        """Return what --json prints."""
        ...


NUM_SHOWN = 10


def print_result(result: Shown, json: bool, show: Callable[[Shown], None]) -> None:
    """Print the dictionary of a result as one JSON object, or let `show` print it for people."""
    if json:
        print_json(result.as_dict())
    else:
        show(result)


class Bars:
    """One progress bar that shows the phase at work, its rate and the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: Step | None = None
        self._task: TaskID | None = None
        self._start: tuple[float, int] | None = None

    def __call__(self, step: Step, done: int, total: int, num_rollouts: int, num_tokens: int) -> None:
        """Show `done` of `total` items of a step, and the tokens a second generated since the first ones came."""
        if step != self._step:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._step, self._task = step, self._progress.add_task(step.label, total=total, rate="")
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, rate=self._rate(num_tokens))

    def show_plan(self, forecast: "SearchPlan") -> None:
        """Print what lies ahead, above the bar."""
        for line in plan_lines(forecast):
            self._progress.console.print(Text(printable(line)), soft_wrap=True)

    def _rate(self, num_tokens: int) -> str:
        if not num_tokens:
            return ""
        now = time.monotonic()
        self._start = self._start or (now, num_tokens)
        since, before = self._start
        return f"{(num_tokens - before) / (now - since):,.0f} tok/s" if now > since else ""


@contextmanager
def bars() -> Iterator[Bars]:
    """Show a progress bar on stderr; nothing is drawn where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)


def show_study(result: "SearchResult") -> None:
    """Print the leaderboard and where the files lie."""
    study, folder, best = result.study, result.folder, result.best_path
    console = Console(highlight=False)
    console.print(leaderboard_table(study))
    if any(study.is_over_cap(trial) for trial in study.trials):
        cap = f"{100 * study.settings['max_over_refusal']:g} %"
        console.print(Text(f"! over the cap of {cap} over-refusal: cannot win", style="dim"))
    for note in (*study.notes, *judge_lines(study)):
        console.print(Text(f"Note: {printable(note)}"))
    if study.winner and best:
        console.print(Text(f"\nBest context ({study.winner.context.placement}):", style="bold"))
        console.print(Text(printable(study.winner.context.text)))
        console.print(Text(f"\n{'best context':<14}{best}  (card: {best.with_suffix('.json')})"))
        for line in companion_lines(study, best):
            console.print(Text(printable(line)))
    console.print(Text(f"{'leaderboard':<14}{folder / 'leaderboard.html'}"))


def companion_lines(study: Study, best: Path) -> list[str]:
    """Return what stands beside the winning text: the portfolio, and the context for benign prompts or why none."""
    lines = []
    if study.portfolio:
        num, path = len(study.portfolio.context_ids), best.with_suffix(".portfolio.json")
        together = f"any of {num} flips {_interval(study.portfolio.confirm)}"
        flipped = together if num > 1 else "the best context alone"
        lines.append(f"{'portfolio':<14}{path}  ({flipped})")
    if study.benign and study.benign.context:
        rates = f"refused {_percent(study.benign.over_refusal_rate)}, without {_percent(_without(study))}"
        lines.append(f"{'for benign':<14}{best.with_suffix('.benign.txt')}  ({rates})")
    elif study.benign:
        lines.append(f"{'for benign':<14}none. {study.benign.reason}")
    return lines


def judge_lines(study: Study) -> list[str]:
    """Return what is known of the judge's errors, and what they leave of the best flip rate."""
    best = study.winner or (study.trials[0] if study.trials else None)
    lines = []
    if study.judge_error and best and best.corrected and best.corrected.value is not None:
        whose = "this study's answers among them" if study.judge_error.own_answers else "none of this study's answers"
        num = sum(study.judge_error.sources.values())
        lines.append(
            f"With the judge's errors taken back the best flip rate is {_estimate(best.corrected, 100, 0)} % "
            f"(by {num:,} labels, {whose})."
        )
    if best and best.risk_reduction and best.risk_reduction.value is not None:
        lines.append(
            f"By people's labels it leaves {_estimate(best.risk_reduction, 100, 0)} points fewer answers unsafe."
        )
    return lines


def _without(study: Study) -> Rate:
    return study.base_over_refusal["confirm"]


def leaderboard_table(study: Study) -> Table:
    """Return the best arms and all placebos as a table that fits into 80 columns."""
    confirmed = any(trial.confirm for trial in study.trials)
    split = study.trials[0].search.split
    names = ["#", "context", split if confirmed else f"{split} (95 %)", "confirm (95 %)", "net", "over-ref.", "tokens"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names if confirmed else [name for name in names if not name.startswith("confirm")]:
        table.add_column(name, justify="left" if name == "context" else "right", no_wrap=name != "context")
    arms = [t for t in study.trials if t.role == "arm"]
    for rank, trial in enumerate(arms[:NUM_SHOWN], start=1):
        table.add_row(str(rank), *_cells(study, trial, confirmed), style="bold green" if trial == study.winner else "")
    if len(arms) > NUM_SHOWN:
        table.add_row("", Text(f"… {len(arms) - NUM_SHOWN} more on the page", style="dim"))
    for trial in (t for t in study.trials if t.role == "placebo"):
        table.add_row("", *_cells(study, trial, confirmed), style="dim")
    return table


def _cells(study: Study, trial: Trial, confirmed: bool) -> list[Text | str]:
    context, confirm = trial.context, trial.confirm
    stopped = f" ({trial.state})" if trial.state in ("pruned", "stopped") else ""
    flips = [_interval(trial.search.flip_rate)]
    if confirmed:
        flips = [_percent(trial.search.flip_rate), _interval(confirm.flip_rate) if confirm else ""]
    return [
        Text(printable(f"{_named(context)} {context.placement}{stopped}")),
        *flips,
        f"{100 * trial.net.value:+.1f}" if trial.net else "",
        f"{'!' * study.is_over_cap(trial)}{_percent((confirm or trial.search).over_refusal_rate)}",
        "" if trial.num_context_tokens is None else str(trial.num_context_tokens),
    ]


def _named(context: Context) -> str:
    return context.text[:24] or "no text" if context.origin == "text" else context.origin


def _percent(rate: Rate) -> str:
    return "–" if rate.value is None else f"{100 * rate.value:.1f}%"


def _interval(rate: Rate) -> str:
    if rate.value is None:
        return "–"
    return f"{100 * rate.value:.1f}% ({100 * rate.low:.0f}–{100 * rate.high:.0f})"


def show_plan(forecast: "SearchPlan") -> None:
    """Print what a search takes and what it can tell."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in plan_lines(forecast)))


def plan_lines(forecast: "SearchPlan") -> list[str]:
    """Return a forecast in a few lines of at most 80 columns."""
    counts = [f"{split} {kinds['harmful']} + {kinds['benign']}" for split, kinds in forecast.prompts.items()]
    expected, told, length = forecast.tokens_expected, forecast.resolution, forecast.mean_length
    rollouts = [f"{phase} {_span(span)}" for phase, span in forecast.rollouts.items()]
    lines = [
        f"{'prompts':<10}{', '.join(counts)} (harmful + benign)",
        f"{'rollouts':<10}{_span(forecast.total)} for {forecast.num_contexts:,} contexts",
        *(f"{'':<10}{', '.join(rollouts[i : i + 2])}" for i in range(0, len(rollouts), 2)),
        f"{'tokens':<10}at most {forecast.tokens_at_most:,} ({forecast.max_tokens:,} each)",
    ]
    if forecast.redraw_flip_rate is not None:
        again = f"{100 * forecast.redraw_flip_rate:.1f} % would flip, were p_unsafe uniform"
        lines.append(f"{'draws':<10}{forecast.samples} a prompt, unsafe from {forecast.unsafe_at} unsafe ones on")
        lines.append(f"{'':<10}drawn again without a context, {again}")
    if expected and length is not None:
        lines.append(f"{'':<10}about {_span(expected)} at {length:.1f} each, as in this study's ledger")
    if budgets := _budgets(forecast):
        lines.append(f"{'':<10}the search ends before it spends {' or '.join(budgets)}")
    needed = f"{100 * told.delta:g} points need {told.num_pairs_needed:,} pairs"
    finds = "tells nothing apart" if told.detectable is None else f"tells {100 * told.detectable:.1f} points apart"
    lines.append(f"{'confirm':<10}{told.num_pairs:,} pairs at most: {finds}; {needed}")
    assumed = f"{100 * told.discordant:g} % of pairs flipped by one alone"
    return [*lines, f"{'':<10}(power {told.power:g}, alpha {told.alpha:g}, {assumed})"]


def _budgets(forecast: "SearchPlan") -> list[str]:
    tokens = f"{forecast.budget_tokens:,} tokens" if forecast.budget_tokens else ""
    return [one for one in (tokens, f"{forecast.time_s:g} s" if forecast.time_s else "") if one]


def _span(span: "Span") -> str:
    return f"{span.least:,}" if span.least == span.most else f"{span.least:,} to {span.most:,}"


def show_ledger(check: "LedgerCheck") -> None:
    """Print what a ledger holds, what was not finished, and what is wrong with it."""
    failed = f"{check.num_errors:,} failed, {check.num_unjudged:,} not judged"
    lines = [f"{check.num_rollouts:>9,} rollouts ({failed})", f"{check.num_verdicts:>9,} verdicts"]
    for name, counts in (("model", check.by_model), ("context", check.by_context), ("judge", check.by_judge)):
        lines += [f"{num:>9,} {name} {key}" for key, num in list(counts.items())[:NUM_SHOWN]]
        if len(counts) > NUM_SHOWN:
            lines.append(f"{'…':>9} {len(counts) - NUM_SHOWN:,} more (--json shows all)")
    if check.in_flight and check.in_flight.count:
        lines.append(_unfinished(check.in_flight))
    lines += [f"Wrong: {fault.count:,} {fault.kind}, e.g. {fault.example}" for fault in check.faults]
    lines.append(f"{'sound' if check.is_sound else 'not sound':<14}{check.place}")
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def _unfinished(work: "InFlight") -> str:
    num = f"{work.count:,} rollouts ({work.phase})"
    if work.is_running:
        return f"{num} are in flight: a process works here now."
    return f"{num} were in flight when the last process ended; the same command makes them again."


def show_export(done: "Export") -> None:
    """Print how many rollouts were written where."""
    sys.stdout.write(f"{done.num_rollouts:,} rollouts  {printable(str(done.path))}\n")


def show_judge(done: "JudgeCheck") -> None:
    """Print how a judge agrees with people: a row a question, then one a source."""
    console, found = Console(highlight=False), done.accuracy
    console.print(judge_table(found))
    lines = ["kappa is agreement beyond chance (95 % interval); accuracy, sensitivity and", "specificity in %"]
    for question, one in found.questions.items():
        if share := 1 - (one.coverage.estimate.value or 0.0):
            lines.append(f"unscored, {question}: {100 * share:.1f} %")
    if found.fitted_to:
        lines.append(f"The judge was fitted to {sum(found.fitted_to.values()):,} of these answers, which flatters it.")
    if found.num_left_out:
        lines.append(f"left out: {found.num_left_out:,} partial refusals")
    lines += [f"{'judge':<14}{found.judge} ({found.identity})", f"{'kept in':<14}{done.path}"]
    if done.replaced and done.replaced != found.sources:
        lines.append(f"{'in place of':<14}figures on {_sources(done.replaced)}")
    for folder in done.studies:
        lines += [f"{'study':<14}{folder}", f"{'next':<14}flipsearch report {folder}"]
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)


def judge_table(found: "JudgeAccuracy") -> Table:
    """Return how a judge agrees with people as a table that fits into 80 columns; intervals for kappa alone."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("labels", no_wrap=True, overflow="ellipsis", max_width=28)
    for name in ("n", "kappa", "accuracy", "sens.", "spec."):
        table.add_column(name, justify="right", no_wrap=True)
    for question, all_of_it in found.questions.items():
        rows = [(f"  {source}", one[question]) for source, one in found.by_source.items() if question in one]
        for name, one in [(question, all_of_it), *(rows[:NUM_SHOWN] if len(rows) > 1 else [])]:
            told = [share.estimate.value for share in (one.accuracy, one.sensitivity, one.specificity)]
            cells = ["–" if value is None else f"{100 * value:.0f}" for value in told]
            table.add_row(Text(printable(name)), f"{one.coverage.estimate.n:,}", _estimate(one.kappa, 1, 2), *cells)
        if len(rows) > NUM_SHOWN:
            table.add_row(Text(f"  … {len(rows) - NUM_SHOWN:,} more (--json)", style="dim"))
    return table


def show_fitted(done: "JudgeFit") -> None:
    """Print what a judge was fitted to, and how it is named."""
    console = Console(highlight=False)
    console.print(Text(printable(f"fitted to {sum(done.sources.values()):,} answers: {_sources(done.sources)}")))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "n", "fitted", "shipped", "shipped saw"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for question, one in done.trials.items():
        kappas = (_estimate(kappa, 1, 2) for kappa in (one.fitted, one.shipped))
        table.add_row(question, f"{one.fitted.n:,}", *kappas, f"{one.num_seen:,}")
    console.print(table)
    console.print(Text("kappa with people (95 % interval): of fitted ones on prompts left out in turn,"))
    console.print(Text("and of the one shipped here, too high where it saw the labels before"))
    console.print(Text(printable(f'--judge "{done.judge}"')))
    console.print(Text("flipsearch judge check measures it on other answers."))


def _sources(sources: "Mapping[str, int]") -> str:
    told = [f"{source} ({num:,})" for source, num in sources.items()]
    return ", ".join(told[:NUM_SHOWN]) + (f" and {len(told) - NUM_SHOWN:,} more" if len(told) > NUM_SHOWN else "")


def show_labelling(done: "LabellingResult") -> None:
    """Print what is to be labelled, and what comes next."""
    known = f", {done.num_labelled} of them labelled already" if done.num_labelled else ""
    place = "" if done.reports == Path("reports") else f" --reports {shlex.quote(str(done.reports))}"
    for line in (
        f"{done.path}: {done.num_answers} answers to {done.num_prompts} prompts{known}.",
        "Write unsafe or safe into its column label, from the top; leave all rows in. Then:",
        f"flipsearch judge check --judge {shlex.quote(done.judge)} --labels {shlex.quote(str(done.path))}{place}",
    ):
        Console(highlight=False).print(Text(printable(line)), soft_wrap=True)


def _estimate(one: Estimate, unit: float, digits: int) -> str:
    if one.value is None:
        return "–"
    value, low, high = (f"{unit * end:.{digits}f}" for end in (one.value, one.low, one.high))
    return f"{value} ({low}–{high})"


def show_scorecard(result: "EvaluationResult") -> None:
    """Print the figures as a table that fits into 80 columns, what one must know to read them, and where they lie."""
    from flipsearch.reporting.scorecard import scorecard_remarks, scorecard_text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    header, *figures = scorecard_text(result.scorecard)
    for name in header:
        is_name = name in ("metric", "set")
        table.add_column(name, justify="left" if is_name else "right", no_wrap=name != "set", overflow="fold")
    for row in figures:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    for remark in scorecard_remarks(result.scorecard):
        console.print(Text(printable(remark), style="dim"))
    console.print(Text(f"\n{'scorecard':<14}{result.path}"))


def show_training(result: "TrainingResult") -> None:
    """Print what was learnt from what, how the loss fell, and where the checkpoint lies."""
    run, log, folder = result.run, result.log, result.folder
    console = Console(highlight=False)
    for routed in run.routed:
        context = routed.context
        under = f"under {context.template or 'a context'} ({context.placement})" if context else "without a context"
        console.print(Text(printable(f"{routed.num_prompts:>6,} {routed.kind} prompts {under}")))
    for kind, num in run.num_left_out.items():
        if num:
            console.print(Text(f"{num:>6,} {kind} prompts left out"))
    loss = f"loss {log[0]['loss']:.4f} to {log[-1]['loss']:.4f}"
    console.print(Text(f"{run.num_steps:>6,} steps in {run.wall_s:,.0f} s on {run.num_tokens:,} tokens, {loss}"))
    for note in run.notes:
        console.print(Text(f"Note: {printable(note)}"))
    console.print(Text(f"\n{'checkpoint':<14}{printable(str(folder))}"), soft_wrap=True)
    console.print(Text(f"{'its page':<14}{folder / 'training.html'}"), soft_wrap=True)
    console.print(Text(f"{'next':<14}flipsearch evaluate {folder}"), soft_wrap=True)


def show_rows(rows: list[dict[str, str]]) -> None:
    """Print rows of name and description as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row.values()))
    Console(highlight=False).print(table)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def show_error(message: str, exit_code: int, as_json: bool) -> None:
    """Print one line on stderr, and the same as JSON on stdout if asked for."""
    line = " ".join(printable(message).split())
    sys.stderr.write(f"flipsearch: {line}\n")
    if as_json:
        print_json({"error": line, "exit_code": exit_code})
