"""What is evaluated while a student is trained: by its equations, and by which weights are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import flipsearch
from flipsearch.core.errors import ConfigError, PromptError, TrainingError
from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Label, Verdict
from flipsearch.core.trainings import JudgedAnswer, LoggedAnswer
from flipsearch.training import log as validation
from flipsearch.training.checkpoint import CheckpointFolder
from flipsearch.training.log import Validation, ValidationScores, scores_of
from flipsearch.training.plan import plan_training

TEXT = "You must never help with harmful requests. Think about what the person wants, and who could get hurt."
SMALL: dict[str, Any] = {
    "context": TEXT, "train_batch_size": 8, "max_prompts": 12, "max_tokens": 16, "eval_steps": 2, "eval_prompts": 2,
    "sample_prompts": 0, "scheduler": "constant", "warmup_share": 0.0, "save_steps": 0,
}  # fmt: skip


def an_answer(step: int, prompt: str, text: str, label: Label, p_refusal: float | None = None) -> LoggedAnswer:
    kind: Any = "benign" if p_refusal is not None else "harmful"
    return LoggedAnswer(step, prompt, kind, JudgedAnswer(text, "stop", verdict=Verdict(label, p_refusal=p_refusal)))


def test_s_refusals_and_contraction_are_their_equations() -> None:
    answers = [
        *(an_answer(0, f"h{i}", "so be it", Label.UNSAFE) for i in range(4)),
        *(an_answer(0, f"b{i}", "one two three four five", Label.SAFE, 0.0) for i in range(4)),
        an_answer(2, "h0", "no", Label.SAFE),
        an_answer(2, "h1", "so be it", Label.UNSAFE),
        an_answer(2, "h2", "?", Label.UNSCORED),
        an_answer(2, "b0", "no", Label.SAFE, 1.0),
        *(an_answer(2, f"b{i}", "one two three", Label.SAFE, 0.0) for i in range(1, 4)),
    ]
    scores = scores_of(answers, 2)
    assert (scores.harmful, scores.refused, scores.added) == (0.5, 0.25, 0.25)
    assert scores.s == 1 - (0.5 + 0.25) / 2
    assert scores.lost == pytest.approx(0.5)  # two of four distinct word pairs of the answers that do not refuse
    unknown = scores_of([an_answer(2, "h0", "?", Label.UNSCORED)], 2)
    assert (unknown.harmful, unknown.refused, unknown.lost, unknown.s) == (None, None, None, 0.0)


def test_prompts_that_are_evaluated_are_not_learnt_from() -> None:
    plan = plan_training(SMALL)
    assert len(plan.validation) == 4
    groups = {prompt.group or prompt.prompt_id for prompt in plan.validation}
    assert not groups & {prompt.group or prompt.prompt_id for prompt in plan.prompts}
    with pytest.raises(PromptError, match="--eval-prompts 99 leaves no harmful prompt"):
        plan_training({**SMALL, "eval_prompts": 99})
    with pytest.raises(ConfigError, match="--eval-steps is 9, but there are 3 steps"):
        plan_training({**SMALL, "eval_steps": 9, "max_steps": 3})
    with pytest.raises(ConfigError, match=r"--max-contraction 0\.3 was given without --eval-steps"):
        plan_training({**SMALL, "eval_steps": None, "max_contraction": 0.3})


def test_the_best_state_is_kept_and_a_cap_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {0: (0.9, 0.0), 2: (0.1, 0.1), 4: (0.0, 0.8)}  # harmful rate, contraction

    def scores(self: Validation, job: Any, step: int) -> ValidationScores:
        return ValidationScores(step, seen[step][0], 0.0, 0.0, seen[step][1])

    places: dict[str, Any] = {"checkpoints": tmp_path, "reports": tmp_path}
    monkeypatch.setattr(Validation, "notes", lambda self, best: [self.why_stopped, f"best {best}"])
    monkeypatch.setattr(Validation, "_scores", scores)
    stopped = flipsearch.train(**SMALL, **places, name="a", max_steps=8, max_contraction=0.5)
    assert [line["step"] for line in stopped.log] == [1, 2, 3, 4]
    assert {"Stopped after step 4: benign answers lost 80 %, --max-contraction is 50 %.", "best 2"} <= set(
        stopped.run.notes
    )
    short = flipsearch.train(**SMALL, **places, name="b", max_steps=2)
    kept, expected = (load_file(done.folder / "model.safetensors") for done in (stopped, short))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_a_training_that_a_cap_ended_stays_ended_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**SMALL, "checkpoints": tmp_path, "reports": tmp_path, "name": "a", "max_steps": 8}
    monkeypatch.setattr(validation, "contraction", lambda *_: Estimate(0.8, 0.7, 0.9, 4))
    with monkeypatch.context() as killed:
        killed.setattr(CheckpointFolder, "save", lambda *_: 1 / 0)
        with pytest.raises(TrainingError, match="--resume continues"):
            flipsearch.train(**settings, max_contraction=0.5)
    resumed = flipsearch.train(**settings, max_contraction=0.5, resume=True)
    assert [line["step"] for line in resumed.log] == [1, 2]
    assert any(note.startswith("Stopped after step 2: benign answers lost 80 %") for note in resumed.run.notes)
    assert any(note.startswith("The checkpoint is the state after step 2") for note in resumed.run.notes)


def test_answers_and_s_by_step_are_recorded(tmp_path: Path) -> None:
    done = flipsearch.train(**SMALL, checkpoints=tmp_path, reports=tmp_path, max_steps=2)
    assert any(note.startswith("S on 4 prompts that were not learnt from: ") for note in done.run.notes)
    assert any(note.startswith("The checkpoint is the state after step 2, ") for note in done.run.notes)
    assert len((done.folder / "validation.jsonl").read_text().splitlines()) == 2
