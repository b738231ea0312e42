"""The files of a finished training: training.json, the page, and the model card.

A finished training as one HTML page: no scripts, no network, every text escaped, the course of it as charts.
"""

from collections.abc import Mapping, Sequence

from flipsearch.core.trainings import METHODS, Control, LogLine, TrainingRun
from flipsearch.reporting import charts
from flipsearch.reporting.axes import is_drawable, number
from flipsearch.reporting.curves import KINDS, course, merged, points
from flipsearch.reporting.page import environment, shown_settings

CONTROLS: Mapping[Control, str] = {
    "empty": "nothing stood in the context's place",
    "neutral": "a text without any word of safety stood in the context's place",
    "shuffled": "the context's words in another order stood in its place",
}


_NAMES = {
    "num": "completions",
    "num_rollouts": "completions",
    "num_tokens": "tokens",
    "length_mean": "length, mean tokens",
    "length_p95": "length, 95 % stay within",
    "eos_rate": "ended by themselves",
    "truncation_rate": "cut at the limit",
    "leakage_rate": "quote the context",
    "divergence": "divergence, nats a token",
    "divergence_early": "divergence, first 10 tokens",
    "divergence_late": "divergence, after token 30",
    "entropy_first": "entropy, first 30 tokens",
    "grad_norm": "gradient norm",
    "rollout_s": "rollouts, seconds",
    "loss_s": "losses and gradients, seconds",
}
_RATES = frozenset({"eos_rate", "truncation_rate", "leakage_rate", "teacher_mass"})


def training_page(run: TrainingRun, log: Sequence[LogLine]) -> str:
    """Return training.html for a finished training and the lines of its log."""
    steps = merged(log)
    last = steps[-1] if steps else {}
    return (
        environment()
        .get_template("training.html")
        .render(
            run=run,
            method=METHODS[run.method].summary + ".",
            control=control_note(run),
            headline=_headline(run, steps),
            prompts=prompts_sentence(run),
            charts=course(steps, METHODS[run.method].is_supervised),
            is_smoothed=len(steps) > charts.SMOOTH_FROM,
            box=charts,
            by_kind=_by_kind(run, last),
            overall=_overall(last),
            settings=shown_settings(run.settings),
        )
    )


def control_note(run: TrainingRun) -> str:
    """Return what a control is, or "" if the training is none."""
    if run.control is None:
        return ""
    return f"This is a control: {CONTROLS[run.control]}. It is there to be compared with, not to be used."


def prompts_sentence(run: TrainingRun) -> str:
    """Return how many prompts of each kind were trained on, and how many were left out and why."""
    counts = {kind: sum(routed.num_prompts for routed in run.routed if routed.kind == kind) for kind in KINDS}
    left = {kind: n for kind in KINDS if (n := run.num_left_out.get(kind, 0))}
    trained = " and ".join(f"{n:,} {kind}" for kind, n in counts.items())
    is_supervised = METHODS[run.method].is_supervised
    why = "the judge kept no answer to them" if is_supervised else "no context makes the teacher's answer safe"
    left_out = " and ".join(f"{n:,} {kind}" for kind, n in left.items())
    return f"Trained on {trained} prompts." + (f" Left out: {left_out} ({why})." if left else " None was left out.")


def minutes(seconds: float) -> str:
    """Return a time for people."""
    if not is_drawable(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{number(seconds)} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _headline(run: TrainingRun, steps: Sequence[LogLine]) -> list[tuple[str, str, str]]:
    found = [
        ("optimizer steps", f"{run.num_steps:,}", _epochs(steps)),
        ("tokens learnt from", f"{run.num_tokens:,}", f"in {run.num_rollouts:,} completions"),
        ("training time", minutes(run.wall_s), _rollout_time(steps)),
    ]
    losses = points(steps, "loss")
    if losses:
        (step, first), (_, last) = losses[0], losses[-1]
        before = f"{number(first)} at step {step:,.0f}" if len(losses) > 1 else ""
        found.append(("loss, last step", number(last), before))
    return found


def _epochs(steps: Sequence[LogLine]) -> str:
    epochs = [line["epoch"] for line in steps if "epoch" in line]
    return f"{number(epochs[-1])} {'epoch' if epochs[-1] == 1 else 'epochs'}" if epochs else ""


def _rollout_time(steps: Sequence[LogLine]) -> str:
    sampling = sum(line.get("rollout_s", 0.0) for line in steps)
    return f"{minutes(sampling)} in rollouts" if sampling else ""


def _by_kind(run: TrainingRun, line: LogLine) -> list[tuple[str, str, str]]:
    stems = dict.fromkeys(key.rpartition("_")[0] for key in line if key.rpartition("_")[2] in KINDS)
    order = {stem: place for place, stem in enumerate(_NAMES)}
    ordered = sorted(stems, key=lambda stem: order.get(stem, len(order)))
    return [
        (_name(run, stem), _figure(f"{stem}_harmful", stem, line), _figure(f"{stem}_benign", stem, line))
        for stem in ordered
    ]


def _overall(line: LogLine) -> list[tuple[str, str]]:
    keys = [key for key in line if key.rpartition("_")[2] not in KINDS]
    return [(_NAMES.get(key, key.replace("_", " ")), _figure(key, key, line)) for key in keys]


def _name(run: TrainingRun, stem: str) -> str:
    name = _NAMES.get(stem, stem.replace("_", " "))
    return name.replace("divergence", METHODS[run.method].loss)


def _figure(key: str, stem: str, line: LogLine) -> str:
    return number(line[key], stem in _RATES) if key in line else "–"
