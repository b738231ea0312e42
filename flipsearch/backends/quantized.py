"""Models whose linear layers keep their weights in 4 or 8 bits, as bitsandbytes stores them (QLoRA, arXiv 2305.14314).

bitsandbytes multiplies by other kernels on other devices, in other modes, and where a gradient is wanted: a student and
a teacher with the same weights would have other logits, and what a CPU packed for decoding passes no gradient on. So a
layer's weights are made anew in the precision of the run each time it is run, forwards and backwards, and multiplied
like those of any layer. It computes exactly what a layer does that holds its dequantised weights.
"""

import functools
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flipsearch.core.errors import BackendError
from flipsearch.core.settings import Quantize

HOW = {
    "4bit": "4 bits (NF4, with scales in 8 bits)",
    "8bit": "8 bits (whole numbers, with a scale per row)",
}
BYTES: dict[str | None, float] = {"4bit": 0.5 + (1 + 4 / 256) / 64, "8bit": 1.0, None: 0.0}
"""Per weight: 64 share a scale of a byte, and 256 scales one of four bytes; those per row hardly count."""
# It complains of kernels for CPUs that are not installed, and are not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization_options(quantize: Quantize, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `from_pretrained` needs to round weights while it loads them."""
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    more = nf4 if quantize == "4bit" else {}
    config = BitsAndBytesConfig(**{f"load_in_{quantize}": True}, **more)
    return {"quantization_config": config, "device_map": {"": device}}


def num_rounded(model: PreTrainedModel) -> int:
    """Return how many weights are rounded: those of linear layers but the head's; BackendError if these are few."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    layers: list[Any] = [x for x in model.modules() if type(x) in (nn.Linear, Conv1D) and x not in ends]
    num: int = sum(layer.weight.numel() for layer in layers)
    # What is tied is one parameter.
    inner = sum(p.numel() for p in {*model.parameters()} - {end.weight for end in ends})
    if getattr(model.config, "quantization_config", None) is not None:
        raise BackendError("the model's files are quantised already; leave --quantize out.")
    if num < inner / 2:
        raise BackendError(
            f"--quantize rounds linear layers, which hold {num / inner:.0%} of the model's weights beside its "
            "embeddings (the experts of a mixture are none); leave it out."
        )
    return num


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each layer whose weights bitsandbytes holds."""
    kinds = importlib.import_module("bitsandbytes.nn")
    for name, layer in model.named_modules():
        if isinstance(layer, (kinds.Linear4bit, kinds.Linear8bitLt)):
            yield name, layer


def dequantized(layer: Any) -> Tensor:
    """Return the weights (out, in) of a quantised layer; those of 4 bits in the precision of the run."""
    convert = importlib.import_module("transformers.integrations.bitsandbytes").dequantize_bnb_weight
    weights: Tensor = convert(layer.weight, getattr(layer, "state", None))
    return weights


def multiply_dequantized(model: nn.Module) -> None:
    """Let the quantised layers of a model multiply by their dequantised weights."""
    for _, layer in quantized_layers(model):
        layer.forward = functools.partial(_Product.apply, layer)


class _Product(torch.autograd.Function):
    """A linear layer that makes its weights again in the backward pass, and keeps none in between."""

    @staticmethod
    def forward(ctx: Any, layer: Any, states: Tensor) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(states, dequantized(layer).to(states.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient @ dequantized(ctx.layer).to(gradient.dtype)
