"""The processes of one training, as a launcher started them, and what they exchange.

    accelerate launch --num-processes 4 -m flipsearch train --context best.txt        (torchrun does as well)

The main process, the only one without a launcher, generates answers, judges and writes files; all of them train. With
FSDP 2 all processes meet in every forward pass of a sharded model, but in rollouts each decodes for as many steps as
its own rows need: `whole_weights` gathers the shards once for all of them.

Schedulers say by a signal that the time is up: `StopSignals`.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import PartialState  # type: ignore[import-untyped]
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from flipsearch.core.errors import FlipsearchError, TrainingStoppedError

Shared = TypeVar("Shared")
LONGEST_WAIT = timedelta(days=7)
"""The others wait while the main process generates answers; a process that dies is the launcher's to notice."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
RUN_AGAIN = "the same command continues, with --resume if it left a folder that ends in .partial."


class MainProcessFailedError(FlipsearchError):
    """The main process failed, and has reported why."""


def num_processes() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process generates answers and writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def is_sharded() -> bool:
    """Return whether the launcher wants FSDP: gradients, optimizer and resting weights in shards."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def init_process_group(on_cpu: bool) -> None:
    """Meet the other processes; of several GPUs each takes its own. Nothing happens where there is one process."""
    if num_processes() == 1:
        return
    # The launcher's default has all but the main process read empty weights: teacher and checks need real ones.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)

    def leave() -> None:
        # Before the interpreter goes down: threads of the group that outlive it can abort the process.
        if distributed.is_initialized():
            distributed.destroy_process_group()

    atexit.register(leave)


def broadcast_from_main(make: Callable[[], Shared]) -> Shared:
    """Return what `make` returns in the main process, in all of them; its error stops the others too."""
    if num_processes() == 1:
        return make()
    box: list[tuple[Shared] | None] = [None]
    try:
        if is_main_process():
            box = [(make(),)]
    finally:
        distributed.broadcast_object_list(box, src=0)
    if box[0] is None:
        raise MainProcessFailedError("the main process failed.")
    return box[0][0]


def all_gather(value: Shared) -> list[Shared]:
    """Return the values of all processes, in their order."""
    if num_processes() == 1:
        return [value]
    values: list[Shared | None] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


class StopSignals:
    """A block that SIGTERM and SIGUSR1 end with TrainingStoppedError: at once or, if `waits`, when it looks at `name`.

    Signals reach Python in its main thread alone: in others nothing changes.
    """

    def __init__(self, where: str = "before the first step") -> None:
        self.where = where
        self.name, self.waits = "", False
        """The signal that came, and whether it waits for somebody who saves first."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self.name:
            raise TrainingStoppedError(f"stopped by {self.name} {self.where}; {RUN_AGAIN}")

    def _note(self, number: int, _: object) -> None:
        self.name = signal.Signals(number).name
        if not self.waits:
            raise KeyboardInterrupt  # which nobody takes for an error of the model or the judge


@contextmanager
def whole_weights(model: Any, accelerator: Any) -> Iterator[None]:
    """Keep a model's sharded weights gathered in the block; gradients and optimizer stay in shards."""
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
