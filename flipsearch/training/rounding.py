"""The student is run as the teacher is: without dropout, and in bfloat16 by weights that are rounded once per step.

Weights are kept in float32, or small updates would be lost. They are run as the teacher's are: rounded once per step
and multiplied without autocast, which would round other places. So equal weights give equal logits, a context that says
nothing trains nothing, and rollouts need no rounding of their own at each token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class RoundedCopy:
    """A copy of a model in a lower precision, which is run in its place; gradients reach the model's own weights."""

    def __init__(self, rounded: Any) -> None:
        # Gradients never stay here, but what is kept for them has to be the same when layers are recomputed.
        self.rounded = rounded.requires_grad_(True)

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Take the weights that `model` has now."""
        for own, copied in zip(model.parameters(), self.rounded.parameters(), strict=True):
            copied.copy_(own)

    def run(self, model: nn.Module, **options: Any) -> Any:
        """Return what the copy's forward returns; its gradients go to the weights of `model`."""
        pairs = zip(model.named_parameters(), self.rounded.parameters(), strict=True)
        weights = {name: _Rounded.apply(own, copied) for (name, own), copied in pairs}  # type: ignore[no-untyped-call]
        return torch.func.functional_call(self.rounded, weights, (), options)


class _Rounded(torch.autograd.Function):
    """A rounded weight whose gradient is that of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None


def without_noise(model: nn.Module, recomputes: bool) -> None:
    """Put a model into eval mode: no dropout, no jitter; with `recomputes` its layers keep activations of none."""
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)] if recomputes else []
    for layer in layers:
        layer.training = True  # the library recomputes no others
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
