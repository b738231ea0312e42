"""Bounds on what others' templates take: they can loop for ever, and grow without end.

Time is bounded by a trace function, which sees every call and, in a template's own code, every line. Unlike a signal it
is a thread's own; a debugger's or a coverage tool's function comes back afterwards. It cannot end a single operation in
C: those that could take for ever are refused by who renders. Memory is bounded by the system, and for a whole process:
so one thread renders at a time, another that allocates MAX_BYTES within these milliseconds may get a MemoryError, and a
limit that is lower already stays. No process starts within a block, so none inherits the limit: vLLM's are not bounded.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

MAX_SECONDS = 2.0
"""Of processor time, so that a busy machine stops nothing; an honest template needs some milliseconds."""
MAX_BYTES = 2**29
MAX_CHARACTERS = 1_000_000
"""Of a context, and of what a chat template may add to the texts that it is given."""
TEMPLATE = "<template>"
"""What Jinja calls the file of a template's code."""
_ONE_AT_A_TIME = threading.RLock()
"""Of two that overlap, the second would take the first one's limit for the usual one, and leave it behind for good."""


class BoundExceededError(Exception):
    """A template runs for too long or writes too much."""


@contextmanager
def bounded_rendering() -> Iterator[None]:
    """Raise BoundExceededError in a block that renders for too long, and MemoryError if it takes too much memory."""
    deadline, tracer = time.thread_time() + MAX_SECONDS, sys.gettrace()  # waiting for the lock takes no such time

    def check(frame: FrameType, event: str, argument: object) -> Any:
        if time.thread_time() > deadline:
            raise BoundExceededError(f"still running after {MAX_SECONDS:g} s")
        return check if frame.f_code.co_filename == TEMPLATE else None

    with _ONE_AT_A_TIME, _bounded_memory():
        sys.settrace(check)
        try:
            yield
        finally:
            sys.settrace(tracer)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process take MAX_BYTES more than it has; where the system cannot limit it, nothing is done."""
    limits = None
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MAX_BYTES
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            limits = soft, hard
    try:
        yield
    finally:
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, limits)
