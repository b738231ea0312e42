"""Weights that FSDP2 keeps in shards, gathered for as long as a rollout lasts.

Every forward of a sharded model is a meeting of all processes. While sampling, each decodes for as many steps as its
own rows need, so the shards are gathered once before it and dropped after it; gradients and optimizer stay sharded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.fsdp import FSDPModule


@contextmanager
def whole_weights(model: Any, accelerator: Any) -> Iterator[None]:
    """Keep the model's weights gathered while the block lasts; nothing happens to a model that is not sharded."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            # As accelerate set it: the root stays gathered from its forward to its backward.
            reshards = unit is not model and accelerator.state.fsdp_plugin.reshard_after_forward
            unit.set_reshard_after_forward(reshards, recurse=False)
