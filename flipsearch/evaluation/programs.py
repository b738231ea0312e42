"""Whether the program in a model's answer passes its tests: both run in processes of their own (sandbox.py).

The program is hostile and is never imported here. Of what its process writes nothing is a result: the verdict comes
from the process of the tests, which it cannot reach.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flipsearch.core.errors import ConfigError, JudgeError, one_line
from flipsearch.prompts.problems import Problem

SANDBOX = Path(__file__).with_name("sandbox.py")
UNSENDABLE = "UnsendableError: "
CPU_S, WALL_S = 10, 30.0
"""Seconds of work of each process, and of both together by the clock."""
PROBE = """
import os, socket
def probe():
    tries = {
        "write": lambda: open("probe", "w"), "read": lambda: os.listdir("/proc"),
        "fork": lambda: os.fork() or os._exit(0), "socket": socket.socket, "signal": lambda: os.kill(os.getppid(), 0),
    }
    able = []
    for name, attempt in tries.items():
        try:
            attempt()
            able.append(name)
        except OSError:
            pass
    return able
"""
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProgramOutcome:
    """What became of a program."""

    passed: bool
    reason: str = ""
    """Why it did not pass. Hostile text."""
    is_late: bool = False


def check_sandbox() -> None:
    """Raise ConfigError unless programs can be run here without files, network, processes and signals."""
    why = "it needs Linux with Landlock and seccomp"
    with suppress(JudgeError, OSError):
        outcome = run_tests(PROBE, "able = probe()\nassert not able, able")
        if outcome.passed:
            return
        why = f"a program could do what it must not ({outcome.reason})"
    raise ConfigError(
        f"programs of models cannot be run safely here: {why}. Leave programming problems out of --reasoning, or "
        "evaluate on another machine."
    )


def program_of(problem: Problem, answer: str) -> str:
    """Return the program in an answer: its last code block that defines what is tested, with what the prompt gave.

    A block that does not define it continues the prompt's code.
    """
    name = problem.entry_point
    blocks = _BLOCK.findall(answer) or [answer]
    defines = re.compile(rf"^(?:async )?(?:def|class) +{re.escape(name)}\b|^{re.escape(name)} *=", re.MULTILINE)
    whole = [block for block in blocks if not name or defines.search(block)]
    if not whole:
        return f"{problem.given_code}{blocks[-1]}"
    # Imports and helpers of the prompt are often left out of an answer.
    given = defines.split(problem.given_code)[0] if name and problem.given_code else ""
    return f"{given}\n{whole[-1]}"


def run_tests(program: str, tests: str, entry_point: str = "", wall_s: float = WALL_S) -> ProgramOutcome:
    """Return whether a program passes; JudgeError if its processes cannot be started and confined, or never meet.

    `entry_point` is what the program has to define; it may be named as one of Python's own functions.
    """
    with TemporaryDirectory(prefix="flipsearch-", ignore_cleanup_errors=True) as folder:
        pipes: tuple[int, ...] = (*os.pipe(), *os.pipe())
        calls_out, calls_in, replies_out, replies_in = pipes
        processes: list[subprocess.Popen[bytes]] = []

        def start(stdin: int, stdout: int, part: str, *descriptors: int) -> subprocess.Popen[bytes]:
            # -I: no file of the folder and nothing of the environment is imported.
            command = [sys.executable, "-I", "-B", str(SANDBOX), part, str(descriptors[0]), str(CPU_S)]
            process = subprocess.Popen(
                [*command, *map(str, descriptors[1:])],
                stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=folder, env={}, pass_fds=descriptors,
                start_new_session=True,
            )  # fmt: skip
            processes.append(process)
            return process

        try:
            start(calls_out, subprocess.DEVNULL, "program", replies_in)
            tester = start(subprocess.PIPE, subprocess.PIPE, "tests", calls_in, replies_out)
            for descriptor in pipes:
                os.close(descriptor)
            pipes = ()
            task = json.dumps({"program": program, "tests": tests, "entry_point": entry_point}).encode() + b"\n"
            verdict = _verdict(tester.communicate(task, wall_s)[0])
        except subprocess.TimeoutExpired as error:
            if not error.output:
                raise JudgeError("a program's process did not start in time.") from error
            return ProgramOutcome(False, f"not done in {wall_s:g} s", is_late=True)
        except OSError as error:
            raise JudgeError(f"a program's process cannot be started ({one_line(error)}).") from error
        finally:
            for descriptor in pipes:
                os.close(descriptor)
            for process in processes:
                process.kill()
                for stream in filter(None, (process.stdin, process.stdout)):
                    with suppress(OSError):
                        stream.close()
                process.wait()
    return ProgramOutcome(verdict == "passed", verdict)


def _verdict(written: bytes) -> str:
    """Return the verdict; without one the tests ran out of time or memory, or were never begun."""
    ready, _, verdict = written.partition(b"\n")
    if not ready:
        raise JudgeError("a program's process cannot be confined on this system.")
    outcome = str(json.loads(verdict)) if verdict else "out of time or memory"
    if outcome.startswith(UNSENDABLE):
        raise JudgeError(f"a programming problem cannot be judged: {outcome.removeprefix(UNSENDABLE)}")
    return outcome
