"""A causal language model as decoder and head, so that logits are made for a few positions at a time.

Holds for models whose logits are the last hidden state times the output embeddings, which `check_head` makes sure of:
Qwen, Llama, Mistral, Phi and their kin. Models that cap, scale or bias their logits are refused.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from flipsearch.errors import TrainingError
from flipsearch.training.rows import Layout

PROBE_IDS = (1, 2, 3, 4, 5)
TOLERANCE = 1e-2
"""Of the largest logit: heads in half precision round, caps and scales do far more."""


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
