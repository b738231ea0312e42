"""The processes of one training, as a launcher started them, and what they tell each other.

    accelerate launch --num-processes 4 -m flipsearch train --context best.txt        (torchrun does as well)

The first asks, judges and writes; all of them train. Started without a launcher there is one process, the first.
torch is imported late: input is checked before it.
"""

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from flipsearch.errors import FlipsearchError

Shared = TypeVar("Shared")
LONGEST_WAIT = timedelta(days=7)
"""The others wait while the first asks for answers; a process that dies is the launcher's to notice."""


class FirstFailedError(FlipsearchError):
    """The first process failed, and has said why."""


def num_processes() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
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


def from_first(make: Callable[[], Shared]) -> Shared:
    """Return in every process what `make` gives in the first; the others wait for it.

    An error that the first foresees stops them all: the others raise FirstFailedError.
    """
    if num_processes() == 1:
        return make()
    from torch import distributed

    box: list[tuple[Shared] | None] = [None]
    try:
        if is_first():
            box = [(make(),)]
    finally:
        distributed.broadcast_object_list(box, src=0)
    if box[0] is None:
        raise FirstFailedError("the first process failed.")
    return box[0][0]


def _part() -> None:
    """Leave the group while the interpreter still stands: threads that go on beyond it can abort the process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def of_all(value: Shared) -> list[Shared]:
    """Return what every process gave, in their order."""
    if num_processes() == 1:
        return [value]
    from torch import distributed

    boxes: list[Shared | None] = [None] * num_processes()
    distributed.all_gather_object(boxes, value)
    return boxes  # type: ignore[return-value]
