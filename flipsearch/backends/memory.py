"""How much memory there is, and what torch says when it runs out."""

import gc
import os
from pathlib import Path

import torch

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""What torch says, in lower case, on a GPU, on a CPU and from a GPU's matrix library."""
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""Where a container says how much memory it may take; "max" is all."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's or the machine's memory ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def memory_bytes() -> int:
    """Return the memory of this machine, or what its container may take."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not told on this system
        machine = 4 * 2**30
    limit = LIMIT_FILE.read_text().strip() if LIMIT_FILE.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def free_memory() -> None:
    """Give back what nothing holds any more, on a GPU the device's memory too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
