"""A finished training as one HTML page: no scripts, no network, every text escaped, its curves as charts.

Also the sentences that page and model card share. Knows the record and the log; knows no files.
"""

from collections.abc import Mapping, Sequence

from flipsearch.core.trainings import METHODS, Control, LogLine, TrainingRun
from flipsearch.reporting import charts
from flipsearch.reporting.curves import KINDS, merge_steps, points_of, training_curves
from flipsearch.reporting.format import DASH, duration, setting_rows, three_digits
from flipsearch.reporting.page import render

CONTROLS: Mapping[Control, str] = {
    "empty": "the context was replaced by nothing",
    "neutral": "the context was replaced by a text without any word of safety",
    "shuffled": "the context's words were put in another order",
}
FIGURE_NAMES = {
    "num": "completions",
    "num_rollouts": "completions",
    "num_tokens": "tokens",
    "length_mean": "length, mean tokens",
    "length_p95": "length, 95 % stay within",
    "eos_rate": "ended by themselves",
    "truncation_rate": "truncated at the limit",
    "leakage_rate": "quote the context",
    "divergence": "divergence, nats per token",
    "divergence_early": "divergence, first 10 tokens",
    "divergence_late": "divergence, after token 30",
    "entropy_first": "entropy, first 30 tokens",
    "grad_norm": "gradient norm",
    "rollout_s": "rollouts, seconds",
    "loss_s": "losses and gradients, seconds",
}
"""Name in the log, without the kind -> name on the page; any other is shown as it is logged."""
RATES = frozenset({"eos_rate", "truncation_rate", "leakage_rate", "teacher_mass"})


def training_page(run: TrainingRun, log: Sequence[LogLine]) -> str:
    """Return training.html for a finished training and the lines of its log."""
    steps = merge_steps(log)
    return render(
        "training.html",
        run=run,
        method=METHODS[run.method].summary + ".",
        control=control_note(run),
        headline=_headline(run, steps),
        prompts=prompts_sentence(run),
        charts=training_curves(steps, METHODS[run.method].is_supervised),
        is_smoothed=len(steps) > charts.SMOOTH_FROM,
        box=charts,
        figures=_figures(run, steps[-1] if steps else {}),
        settings=setting_rows(run.settings),
    )


def control_note(run: TrainingRun) -> str:
    """Return what kind of control a training is, or "" if it is none."""
    note = "This is a control: {}. It is there to be compared with, not to be used."
    return note.format(CONTROLS[run.control]) if run.control else ""


def prompts_sentence(run: TrainingRun) -> str:
    """Return how many prompts of each kind were trained on, and how many were left out and why."""
    counts = {kind: sum(routed.num_prompts for routed in run.routed if routed.kind == kind) for kind in KINDS}
    trained = " and ".join(f"{n:,} {kind}" for kind, n in counts.items())
    left_out = " and ".join(f"{n:,} {kind}" for kind in KINDS if (n := run.num_left_out.get(kind, 0)))
    is_supervised = METHODS[run.method].is_supervised
    why = "the judge kept no answer to them" if is_supervised else "no context makes the teacher's answer safe"
    return f"Trained on {trained} prompts." + (f" Left out: {left_out} ({why})." if left_out else " None was left out.")


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
    losses = points_of(steps, "loss")
    if losses:
        (step, first), (_, last) = losses[0], losses[-1]
        before = f"{three_digits(first)} at step {step:,.0f}" if len(losses) > 1 else ""
        boxes.append(("loss, last step", three_digits(last), before))
    return boxes


def _figures(run: TrainingRun, line: LogLine) -> list[list[str]]:
    """Return rows of name, figure of harmful, of benign and of all completions, of one step; those by kind first."""
    order = {name: place for place, name in enumerate(FIGURE_NAMES)}
    rows: dict[tuple[bool, str], list[str]] = {}
    for key, value in line.items():
        stem, _, kind = key.rpartition("_")
        is_overall = kind not in KINDS
        name, column = (key, -1) if is_overall else (stem, list[str](KINDS).index(kind))
        cells = rows.setdefault((is_overall, name), ["", "", ""] if is_overall else [DASH, DASH, ""])
        cells[column] = three_digits(value, name in RATES)
    shown = []
    for is_overall, name in sorted(rows, key=lambda row: (row[0], 0 if row[0] else order.get(row[1], len(order)))):
        title = FIGURE_NAMES.get(name, name.replace("_", " "))
        if not is_overall:
            title = title.replace("divergence", METHODS[run.method].loss)
        shown.append([title, *rows[is_overall, name]])
    return shown
