"""However a step is divided into micro-batches, OPSA learns the same; without a context there is nothing to learn."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from flipsearch.backends.loading import load_model, load_tokenizer
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import TrainingError
from flipsearch.core.records import Context, Prompt, Request, Sampling
from flipsearch.training.divergence import Divergence
from flipsearch.training.methods import OpsaTrainer
from flipsearch.training.trainer import FAILED_BATCH, TrainingJob
from tests.models import tiny_qwen3
from tests.world import flat

PROMPTS = tuple(Prompt(f"How do I fix {number} clocks?" * (number % 3 + 1), "harmful") for number in range(8))
ROUTES = {prompt.prompt_id: Context("Think first, then decide.") for prompt in PROMPTS[:6]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def trainer(folder: Path, out: Path, rows: int = 8, routes: Any = ROUTES, steps: int = 1, rate: float = 1e-2) -> Any:
    model, tokenizer = load_model(folder, torch.device("cpu"), torch.float32), load_tokenizer(folder)
    teacher = copy.deepcopy(model).requires_grad_(False)
    options = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=8 // rows,
        learning_rate=rate,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    job = TrainingJob(model, lambda: nullcontext(teacher), tokenizer, PROMPTS, routes, options)
    return OpsaTrainer(job, Sampling(6, 0.6), Divergence())


def weights(trained: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.student.model.parameters()])


def test_a_step_in_one_batch_of_8_is_one_in_8_of_1_and_in_4_of_2(folder: Path, tmp_path: Path) -> None:
    runs = [trainer(folder, tmp_path, rows) for rows in (8, 1, 2)]
    before = weights(runs[0])
    for run in runs:
        run.train()
    whole, *parts = (weights(run) - before for run in runs)
    assert whole.abs().max() > 1e-6
    for part in parts:
        assert (part - whole).norm() < 1e-4 * whole.norm()


def test_without_a_context_teacher_and_student_agree_and_nothing_is_learnt(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, routes={})
    before = weights(run)
    run.train()
    assert run.stats.summary()["divergence_harmful"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(weights(run), before, rtol=0, atol=1e-7)


def test_the_student_samples_as_the_same_model_outside_of_a_training_does(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path)
    run.sampling = Sampling(12)
    alone = TransformersBackend(str(folder), dtype="float32", device="cpu")
    expected = {
        r.prompt_id: r.completion_ids for r in flat(alone.generate([Request(p) for p in PROMPTS], Sampling(12)))
    }
    assert {row.prompt.prompt_id: row.completion_ids for row in run.rows(PROMPTS)} == expected
    assert len({len(run.student.chat.encode(Request(prompt)).prompt_ids) for prompt in PROMPTS}) > 1, "needs padding"


def test_training_brings_the_student_to_its_teacher(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, steps=24, rate=0.05)
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert len(losses) == 24
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_not_a_number_stops_with_the_batch_saved(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path)
    with torch.no_grad(), run.job.as_teacher() as teacher:
        teacher.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=f"the loss is nan at step 0; the batch is saved in '.*{FAILED_BATCH}'"):
        run.train()
    saved = json.loads((tmp_path / FAILED_BATCH).read_text())
    assert {row["prompt"]["text"] for row in saved} == {prompt.text for prompt in PROMPTS}
