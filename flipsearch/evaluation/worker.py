"""The math-verify process, which run.py starts as a script.

Reads one JSON object per line ({"reference", "text"}) and writes true, false or null (out of time) for each. The texts
are hostile: a power tower can fill the memory or run one long C call that no signal interrupts, so this process has
limits of its own and can be killed without loss. Imports nothing of flipsearch.
"""

import contextlib
import json
import logging
import signal
import sys
import time
from typing import Any

from math_verify import parse, verify

PARSE_S = 3
CPU_S = 20
"""Seconds of work per comparison; the system then ends this process, also if its parent is gone."""
MEMORY = 4 << 30
"""Bytes of address space."""


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    _limit("RLIMIT_AS", MEMORY)
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be read as a reply
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        _limit("RLIMIT_CPU", int(time.process_time()) + CPU_S)
        question = json.loads(line)
        print(json.dumps(is_same(question["reference"], question["text"])), file=out, flush=True)


def is_same(reference: str, text: str) -> bool | None:
    """Return whether a text states the reference answer; None if math-verify runs out of time or memory."""
    seconds = PARSE_S if hasattr(signal, "SIGALRM") else None
    options: Any = {"parsing_timeout": seconds, "raise_on_error": True}
    try:
        right = parse(f"\\boxed{{{reference}}}", **options)
        return bool(verify(right, parse(text, **options), timeout_seconds=seconds, raise_on_error=True))
    except (TimeoutError, MemoryError):
        return None
    except KeyboardInterrupt:
        raise
    # Its parser raises anything on text that is no mathematics, and its own timeout is no Exception.
    except BaseException as error:
        return None if "Timeout" in type(error).__name__ else False


def _limit(name: str, value: int) -> None:
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        limit = getattr(resource, name)
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


if __name__ == "__main__":
    main()
