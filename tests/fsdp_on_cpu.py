"""The command line in processes on a CPU that accelerate takes for GPUs: it shards on nothing else.

Started by a launcher with ACCELERATE_USE_FSDP=true; what is sharded, gathered and reduced is as on GPUs, over gloo.
With STOP_AFTER=N the processes die once step N is logged, before its state is saved; with SIGNAL_AFTER=N one of them
gets SIGUSR1 there.
"""

import os
import signal
from typing import Any

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]

from flipsearch.commands.main import main
from flipsearch.training.log import StepLog

usual_on_log = StepLog.on_log
usual_backend = PartialState._prepare_backend


def prepare_backend(self: Any, *args: Any, **options: Any) -> tuple[str, Any]:
    backend, kind = usual_backend(self, *args, **options)
    # Only once the process group is initialized: that is done as for a CPU.
    is_ready = torch.distributed.is_initialized() and kind is DistributedType.MULTI_CPU
    return backend, DistributedType.MULTI_GPU if is_ready else kind


def on_log(self: Any, args: Any, state: Any, *more: Any, **options: Any) -> None:
    usual_on_log(self, args, state, *more, **options)
    if str(state.global_step) == os.environ.get("STOP_AFTER"):
        os._exit(9)
    if str(state.global_step) == os.environ.get("SIGNAL_AFTER") and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)


StepLog.on_log = on_log  # type: ignore[method-assign]
PartialState._prepare_backend = prepare_backend
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))

if __name__ == "__main__":
    main()
