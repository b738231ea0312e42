"""Bounds on what others' templates take: they can loop for ever, and grow without end."""

import sys
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


class BoundExceededError(Exception):
    """A template runs for too long or writes too much."""


@contextmanager
def bounded_rendering() -> Iterator[None]:
    """Raise BoundExceededError in a block that renders for too long, and MemoryError if it takes too much memory."""
    deadline, tracer = time.thread_time() + MAX_SECONDS, sys.gettrace()

    def check(frame: FrameType, event: str, argument: object) -> Any:
        if time.thread_time() > deadline:
            raise BoundExceededError(f"still running after {MAX_SECONDS:g} s")
        return check if frame.f_code.co_filename == TEMPLATE else None

    with _bounded_memory():
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
