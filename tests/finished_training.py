"""A made-up record of a finished training, and its log."""

from flipsearch.core.records import Context
from flipsearch.core.trainings import TRAINING_FORMAT, RoutedContext, TrainingRun

HOSTILE = (
    "</pre></td><script>alert(1)</script> <img src=x onerror=alert(1)> {{ 7*7 }} {% raw %} "
    "`` | *bold* [x](javascript:1)\n# a heading \u202e \x1b[31m \ud800 \"'"
)
CONTEXT = Context("Think first.\n\nThen decline what would harm.", "system", "role_rule", (("strength", "strong"),))
RUN = TrainingRun(
    format=TRAINING_FORMAT,
    model="pocket",
    model_id="the model id",
    revision=None,
    method="opsa",
    control=None,
    teacher=None,
    routed=(RoutedContext("harmful", CONTEXT, 384), RoutedContext("benign", None, 192)),
    num_left_out={"harmful": 7, "benign": 0},
    num_steps=1200,
    num_rollouts=2400,
    num_tokens=98765,
    wall_s=72.4,
    settings={"learning_rate": 3e-4, "judge": "refusal", "forward_weight": 0.5, "max_tokens": 40, "lora": None},
    prompts_id="the prompts id",
    judge_id="the judge id",
    notes=("Mind the gap.",),
    versions={"flipsearch": "0.1.0"},
)


def a_log(num_steps: int) -> list[dict[str, float]]:
    """Return the lines of an OPSA training that converges."""
    return [_line(step) for step in range(1, num_steps + 1)]


def _line(step: int) -> dict[str, float]:
    by_label = {
        "num": 16, "length_mean": 41.25, "length_p95": 60, "eos_rate": 0.9375, "truncation_rate": 0.0625,
        "leakage_rate": 0.0, "divergence": 0.02 / step, "divergence_early": 0.09 / step,
        "divergence_late": 0.001 / step, "entropy_first": 0.3,
    }  # fmt: skip
    overall = {"step": step, "epoch": step / 10, "loss": 0.3 / step, "grad_norm": 0.4, "learning_rate": 2e-4}
    by_kind = {f"{name}_{kind}": value for kind in ("harmful", "benign") for name, value in by_label.items()}
    return {**overall, **by_kind, "teacher_mass": 1.0, "rollout_s": 2.0}
