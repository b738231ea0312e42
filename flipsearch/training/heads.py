"""A causal language model as decoder and head, so that logits are made for a few positions at a time.

Holds for models whose logits are the last hidden state times the output embeddings, which `check_head` makes sure of:
Qwen, Llama, Mistral, Phi and their kin. Models that cap, scale or bias their logits are refused.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from flipsearch.core.errors import TrainingError
from flipsearch.training.rows import Layout

AsTeacher = Callable[[], AbstractContextManager[Any]]
"""Gives the teacher: a frozen copy, or the student with its adapters off for as long as the block lasts."""
PROBE_IDS = (1, 2, 3, 4, 5)
TOLERANCE = 1e-2
"""Of the largest logit: heads in half precision round, caps and scales do far more."""


@contextmanager
def _without_adapters(model: Any) -> Iterator[Any]:
    """The teacher for as long as the block lasts: the same weights, adapters off, in eval mode."""
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield model
    finally:
        model.train(was_training)


def trainable(model: PreTrainedModel, lora: int, *, with_teacher: bool) -> tuple[Any, AsTeacher]:
    """Return the student and how to ask its frozen initial copy.

    Without `lora` the student's weights are float32 and the copy keeps their precision; with it (a rank) only adapters
    are trained, and the teacher is the same model with adapters off. No copy is made if no teacher will be asked.
    """
    if lora:
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, options)
        return adapted, lambda: _without_adapters(adapted)
    teacher = copy.deepcopy(model).requires_grad_(False).eval() if with_teacher else None
    student: Any = model.float()
    return student.requires_grad_(True), lambda: nullcontext(teacher)


def head_of(model: Any) -> Tensor:
    """Return the output embeddings (V, H)."""
    weight: Tensor = plain(model).get_output_embeddings().weight
    return weight


def completion_hidden(model: Any, layout: Layout) -> Tensor:
    """Return the hidden states (N, H) that predict the completion tokens of a batch."""
    decoder = plain(model).get_decoder()
    hidden: Tensor = decoder(input_ids=layout.ids, attention_mask=layout.mask, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[layout.predicts]  # (B, T, H) -> (N, H)


def check_head(model: Any) -> None:
    """Raise TrainingError unless the model's logits are its last hidden state times its output embeddings."""
    ids = torch.tensor([PROBE_IDS], device=model.device)
    with torch.no_grad():
        logits = plain(model)(input_ids=ids, use_cache=False).logits[0].float()
        ours = linear(plain(model).get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0], head_of(model))
    if (logits - ours.float()).abs().max() > TOLERANCE * logits.abs().max():
        name = type(plain(model)).__name__
        raise TrainingError(f"{name} caps, scales or biases its logits: the training module does not know such heads.")


def plain(model: Any) -> PreTrainedModel:
    """Return the transformers model inside adapters, or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner
