"""Where the teacher reads what the student reads there is nothing to learn: no loss, no gradient, no step of AdamW."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from flipsearch.backends.loading import load_model, load_tokenizer
from flipsearch.core.records import Context, Prompt, Sampling
from flipsearch.training.divergence import Divergence
from flipsearch.training.methods import OpsaTrainer
from flipsearch.training.model import student_and_teacher
from flipsearch.training.trainer import TrainingJob
from tests.models import tiny_qwen3, tiny_tokenizer

PROMPTS = tuple(Prompt(f"How do I fix {number} clocks?", "harmful") for number in range(4))
ROUTES = {prompt.prompt_id: Context("Think first, then decide.") for prompt in PROMPTS}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout everywhere, and tied weights."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.3
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder: Path, dtype: str, routes: Any, steps: int, lora: int = 0, **options: Any) -> tuple[Any, Any, Any]:
    """Return the trainer after its steps, and the trained weights before and after."""
    model, tokenizer = load_model(folder, torch.device("cpu"), getattr(torch, dtype)), load_tokenizer(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    student, rounded, as_teacher = student_and_teacher(model, lora, with_teacher=True)
    job = TrainingJob(student, as_teacher, tokenizer, PROMPTS, routes, arguments, rounded=rounded)
    trainer = OpsaTrainer(job, Sampling(6, 0.6), Divergence())
    before = [parameter.detach().clone() for parameter in student.parameters() if parameter.requires_grad]
    trainer.train()
    return trainer, before, [parameter for parameter in student.parameters() if parameter.requires_grad]


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_without_a_context_nothing_is_learnt(
    family: str, dtype: str, lora: int, request: pytest.FixtureRequest
) -> None:
    steps = 24 if dtype == "bfloat16" and not lora else 2
    trainer, before, after = trained(request.getfixturevalue(family), dtype, {}, steps, lora)
    assert losses(trainer) == [0.0] * steps
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_under_a_context_bfloat16_updates_float32_weights(qwen3: Path) -> None:
    trainer, before, after = trained(qwen3, "bfloat16", ROUTES, 2)
    assert all(loss > 0 for loss in losses(trainer))
    assert {weight.dtype for weight in after} == {torch.float32}
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert {weight.dtype for weight in trainer.student.model.parameters()} == {torch.bfloat16}  # what decodes
    assert all(weight.grad is None for weight in trainer.student.model.parameters())
    exact, _, _ = trained(qwen3, "float32", ROUTES, 1)
    assert losses(trainer)[0] == pytest.approx(losses(exact)[0], rel=0.2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_recomputed_layers_give_the_same_weights(family: str, dtype: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    _, _, kept = trained(folder, dtype, ROUTES, 2)
    _, _, recomputed = trained(folder, dtype, ROUTES, 2, gradient_checkpointing=True)
    assert all(torch.equal(*pair) for pair in zip(kept, recomputed, strict=True))
