"""Compares expressions with math-verify, in a separate process that hostile text can hang or crash without harm.

Works in any thread, and nothing that math-verify prints reaches the terminal. The process itself is worker.py.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from flipsearch.core.errors import JudgeError

WORKER = Path(__file__).with_name("worker.py")
START_S, ANSWER_S = 120.0, 15.0
MAX_CHARACTERS = 2000
"""Of a text without a boxed answer, so much of its end is searched."""


def is_installed() -> bool:
    """Return whether math-verify is installed."""
    return find_spec("math_verify") is not None


class AlgebraWorker:
    """Compares answers in a process that starts with the first comparison and is restarted after a failure."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.answer_s = answer_s
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(1)

    def compare(self, reference: str, text: str) -> bool | None:
        """Return whether `text` states the answer `reference` (both LaTeX); None if it runs out of time or memory.

        Raises JudgeError if math-verify cannot be started at all.
        """
        process = self._process or self._start()
        question = json.dumps({"reference": reference, "text": text[-MAX_CHARACTERS:]})
        try:
            assert process.stdin is not None
            process.stdin.write(question + "\n")
            process.stdin.flush()
            reply = self._read(process, self.answer_s)
        except (OSError, OutOfTime):
            reply = ""
        if reply not in ("true", "false", "null"):
            self._stop()
        return {"true": True, "false": False}.get(reply)

    def close(self) -> None:
        """End the process; closing twice is fine."""
        self._stop()
        self._reader.shutdown()

    def _start(self) -> subprocess.Popen[str]:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        # -P: a file of the current folder that bears the name of a module is not imported.
        command = [sys.executable, "-P", str(WORKER)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="utf-8")
        try:
            ready = self._read(self._process, START_S) == "ready"
        except OutOfTime:
            ready = False
        if not ready:
            self._stop()
            raise JudgeError("math-verify cannot be started; try: pip install --upgrade 'flipsearch[reasoning]'.")
        return self._process

    def _read(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        return self._reader.submit(process.stdout.readline).result(seconds).strip()

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process = None
