"""What a training logs per step: statistics by label, leaks of the context, whole lines."""

import json
from pathlib import Path

from flipsearch.core.records import Context, Prompt
from flipsearch.training.log import StepStats, is_leak, read_log
from flipsearch.training.rows import TrainingRow

PROMPT = Prompt("How do I fix a clock?", "harmful")


def stats(*rows: tuple[TrainingRow, Context | None]) -> StepStats:
    added = StepStats()
    for row, context in rows:
        added.add_row(row, context)
    return added


def test_a_leak_is_five_words_of_the_context_in_a_row() -> None:
    context = "Before you answer, think about what the person wants."
    assert is_leak("I was told: think about What the\nperson wants. So no.", context)
    assert not is_leak("Let me think about what you want.", context)
    assert not is_leak("anything", "too short")


def test_steps_are_summed_up_by_label_over_all_processes() -> None:
    ended = TrainingRow(PROMPT, (1,), (1,), (5, 6), "stop", "No.")
    cut_off = TrainingRow(PROMPT, (1,), (1,), (5, 6, 7, 8), "length", "think about what the person")
    together = stats((ended, None), (cut_off, Context("x y z a b"))).summary()
    assert (together["num_harmful"], together["length_mean_harmful"]) == (2, 3)
    assert (together["eos_rate_harmful"], together["truncation_rate_harmful"]) == (0.5, 0.5)
    assert together["leakage_rate_harmful"] == 0
    assert not any(name.endswith("benign") for name in together)
    assert StepStats.merged([stats((ended, None)), stats((cut_off, None))]).summary() == together


def test_a_log_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(read_log(path)) == []
    whole = {"step": 1, "step_s": 0.1, "num_rollouts": 4, "num_tokens": 40, "loss": 0.5}
    path.write_text(json.dumps(whole) + '\n{"step": 2, "lo')
    assert list(read_log(path)) == [whole]
