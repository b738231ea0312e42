"""The processes of one training, as a launcher started them, and what they tell each other.

    accelerate launch --num-processes 4 -m flipsearch train --context best.txt        (torchrun does as well)

The first asks, judges and writes; all of them train. Started without a launcher there is one process, the first.
torch is imported late: input is checked before it.

Weights that FSDP2 keeps in shards, gathered for as long as a rollout lasts.

Every forward of a sharded model is a meeting of all processes. While sampling, each decodes for as many steps as its
own rows need, so the shards are gathered once before it and dropped after it; gradients and optimizer stay sharded.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.fsdp import FSDPModule

from flipsearch.core.errors import FlipsearchError

Shared = TypeVar("Shared")
LONGEST_WAIT = timedelta(days=7)
"""The others wait while the first asks for answers; a process that dies is the launcher's to notice."""


class MainProcessFailedError(FlipsearchError):
    """The first process failed, and has said why."""


def num_processes() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this one asks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def is_sharded() -> bool:
    """Return whether the launcher asks for FSDP: gradients, optimizer and resting weights in shards."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def join(on_cpu: bool) -> None:
    """Meet the other processes; of several GPUs each takes its own. Nothing happens where there is one process."""
    if num_processes() > 1:
        # The launcher's default has all but the first read empty weights: the teacher and the checks need real ones.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        from accelerate import PartialState  # type: ignore[import-untyped]

        PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
        atexit.register(_part)


def broadcast_from_main(make: Callable[[], Shared]) -> Shared:
    """Return in every process what `make` gives in the first; the others wait for it.

    An error that the first foresees stops them all: the others raise MainProcessFailedError.
    """
    if num_processes() == 1:
        return make()
    from torch import distributed

    box: list[tuple[Shared] | None] = [None]
    try:
        if is_main_process():
            box = [(make(),)]
    finally:
        distributed.broadcast_object_list(box, src=0)
    if box[0] is None:
        raise MainProcessFailedError("the first process failed.")
    return box[0][0]


def _part() -> None:
    """Leave the group while the interpreter still stands: threads that go on beyond it can abort the process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def all_gather(value: Shared) -> list[Shared]:
    """Return what every process gave, in their order."""
    if num_processes() == 1:
        return [value]
    from torch import distributed

    boxes: list[Shared | None] = [None] * num_processes()
    distributed.all_gather_object(boxes, value)
    return boxes  # type: ignore[return-value]


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
