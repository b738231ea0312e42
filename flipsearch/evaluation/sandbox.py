"""The processes that a model's program and its tests run in; programs.py starts this file as a script, once for each.

    tests process  --the program, then calls and arguments-->  program process
                   <--plain values, handles of other objects--

The program is hostile. It never meets the tests: they run in a process of their own, see nothing of it but numbers,
texts and containers of them, and alone can write the verdict. Before it reads a line of the program, each process gives
up files (Landlock: it reads Python's own and writes nowhere), the network, other processes, threads and signals
(seccomp), and all but a little time and memory (rlimits). What cannot be given up ends it before it has begun.
Imports nothing of flipsearch.
"""

import builtins
import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space."""
LONGEST_LINE = 1 << 24
"""Characters of a message."""
DEATH_SIGNAL, NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 1, 38, 22, 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE_AND_READ = 0b1101
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Landlock's version -> how many rights on files it knows; later ones know 16."""
READ_PLACES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
FIRST_UNIFIED = 424
"""From here on system calls have the same numbers everywhere, and older ones do all that Python needs."""
PERMISSION, NO_SUCH_CALL = 0x00050001, 0x00050026
ALLOW, KILL = 0x7FFF0000, 0x80000000
X32 = 0x40000000
MACHINES = {"x86_64": (0xC000003E, 72), "aarch64": (0xC00000B7, 25)}
"""Machine -> its number, and that of the system call fcntl."""
SIGNALS_OTHERS = (8, 10, 15)
"""What fcntl is told to let a file send signals to other processes."""
DENIED = {
    # sockets, processes, signals, looking into others
    # files by path or mode, where Landlock does not reach
    # limits, priorities, shared memory
    # the system's own
    "x86_64": (
        (41, 42, 43, 44, 46, 49, 50, 53, 288, 307, 56, 57, 58, 59, 322, 62, 129, 200, 234, 297, 101, 310, 311, 312),
        (76, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 259, 260, 261, 268, 280, 303, 304),
        (29, 30, 64, 68, 126, 141, 142, 144, 157, 160, 203, 240, 251, 302, 314, 319),
        (103, 135, 154, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 227, 246,
         248, 249, 250, 256, 272, 279, 298, 300, 305, 308, 313, 320, 321, 323),
    ),
    "aarch64": (
        (198, 199, 200, 201, 202, 203, 206, 211, 242, 269, 220, 221, 281, 129, 130, 131, 138, 240, 117, 270, 271, 272),
        (5, 6, 7, 14, 15, 16, 33, 45, 52, 53, 54, 55, 88, 264, 265),
        (30, 91, 118, 119, 122, 140, 164, 167, 180, 186, 190, 194, 196, 261, 274, 279),
        (39, 40, 41, 51, 60, 89, 92, 97, 104, 105, 106, 112, 116, 142, 161, 162, 170, 171, 217, 218, 219, 224, 225,
         238, 239, 241, 262, 266, 268, 273, 280, 282, 294),
    ),
}  # fmt: skip
"""Machine -> the numbers of system calls that fail with "not permitted"."""


def confine(cpu_s: int) -> None:
    """Give up all that neither a program nor its tests need; OSError if something cannot be given up."""
    no_more = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for limit, most in no_more.items():
        resource.setrlimit(limit, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: Callable[..., int], *arguments: Any) -> int:
        result = function(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "this system cannot confine a process")
        return result

    call(libc.prctl, DEATH_SIGNAL, 9, 0, 0, 0)  # it does not outlive flipsearch; prctl is then denied
    call(libc.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version = call(libc.syscall, CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    rights = (1 << FILE_RIGHTS.get(version, 16)) - 1
    ruleset = call(libc.syscall, CREATE_RULESET, struct.pack("Q", rights), ctypes.c_size_t(8), 0)
    for place in {*READ_PLACES, sys.prefix, sys.base_prefix}:
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(place, os.O_PATH)
            allowed = EXECUTE_AND_READ if os.path.isdir(place) else EXECUTE_AND_READ & ~0b1000
            call(libc.syscall, ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, folder), 0)
            os.close(folder)
    call(libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    program = seccomp_filter(platform.machine())
    buffer = ctypes.create_string_buffer(program)
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    call(libc.prctl, SET_SECCOMP, FILTER, descriptor, 0, 0)


def seccomp_filter(machine: str) -> bytes:
    """Return the filter of system calls as BPF; OSError for a machine whose numbers are not known."""
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    number_of_machine, fcntl = MACHINES[machine]
    denied = [number for numbers in DENIED[machine] for number in numbers]
    rules = [
        (load, 0, 0, 4),  # the machine
        (equal, 1, 0, number_of_machine),
        (end, 0, 0, KILL),
        (load, 0, 0, 0),  # the system call
        (at_least, 0, 1, X32),
        (end, 0, 0, KILL),
        (at_least, 0, 1, FIRST_UNIFIED),
        (end, 0, 0, NO_SUCH_CALL),
        *((equal, len(denied) - index + 5, 0, number) for index, number in enumerate(denied)),
        (equal, 0, 4, fcntl),
        (load, 0, 0, 24),  # its second argument
        *((equal, 3 - index, 0, command) for index, command in enumerate(SIGNALS_OTHERS)),
        (end, 0, 0, ALLOW),
        (end, 0, 0, PERMISSION),
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def encode(value: Any, kept: list[Any]) -> Any:
    """Return a value as JSON can hold it; what is no plain value is kept, and goes as a handle: its place in `kept`."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or type(value) is bool else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, Mapping):
        return ["dict", *(encode(part, kept) for pair in value.items() for part in pair)]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(encode(item, kept) for item in value)]
    if callable(getattr(value, "tolist", None)) and type(value).__module__ == "numpy":
        return encode(value.tolist(), kept)
    kept.append(value)
    return ["handle", len(kept) - 1]


def decode(value: Any, resolve: Callable[[int], Any]) -> Any:
    """Return the value that `encode` made this of."""
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "handle":
        return resolve(int(items[0]))
    if kind == "complex":
        return complex(*items)
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "dict":
        parts = [decode(item, resolve) for item in items]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    kinds: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](decode(item, resolve) for item in items)


def run_program(replies: Any) -> None:
    """Run the program that the first line holds, then answer calls until the input ends."""
    source, requests = json.loads(sys.stdin.readline()), sys.stdin
    kept: list[Any] = []

    def reply(make: Callable[[], Any]) -> None:
        try:
            line = json.dumps(["value", make()])
        except BaseException as error:  # also SystemExit: a program that wants to end has not passed
            line = json.dumps(["error", type(error).__name__, str(error)[:200]])
        replies.write(line + "\n")
        replies.flush()

    def names() -> Any:
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(compile(source, "program", "exec"), namespace)
        return {name: encode(value, kept) for name, value in namespace.items() if not name.startswith("__")}

    def answer(request: Any) -> Any:
        what, target, *rest = request
        owner = kept[target]
        if what == "list":
            return encode(list(owner), kept)
        if what == "get":
            return encode(getattr(owner, rest[0]), kept)
        arguments = [decode(part, kept.__getitem__) for part in rest]
        if what == "set":
            return setattr(owner, arguments[0], arguments[1])
        return encode(owner(*arguments[0], **arguments[1]), kept)

    reply(names)
    for line in requests:
        reply(partial(answer, json.loads(line)))


class Handle:
    """An object of the program, which stays in its process."""

    def __init__(self, ask: Callable[..., Any], place: int) -> None:
        self.__dict__.update(ask=ask, place=place)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it with plain values and handles."""
        return self.ask("call", self.place, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.ask("get", self.place, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.ask("set", self.place, name, value)

    def __iter__(self) -> Any:
        return iter(self.ask("list", self.place))


def run_tests(requests: Any, replies: Any) -> str:
    """Return "passed", or why a program does not pass its tests."""
    task = json.loads(sys.stdin.readline())

    def send(message: Any) -> Any:
        requests.write(json.dumps(message) + "\n")
        requests.flush()
        return receive()

    def receive() -> Any:
        line = replies.readline(LONGEST_LINE)
        if not line.endswith("\n"):
            raise EOFError("the program ended, or wrote too much")
        outcome, *rest = json.loads(line)
        if outcome == "value":
            return rest[0]
        kind = getattr(builtins, str(rest[0]), Exception)
        # StopIteration would end a test's map or generator as if all of it had been right.
        is_usual = isinstance(kind, type) and issubclass(kind, Exception) and kind is not StopIteration
        error = Exception(*rest[1:])
        with contextlib.suppress(TypeError):  # of one that takes more than a text
            error = kind(*rest[1:]) if is_usual else error
        raise error

    def ask(what: str, target: int, *rest: Any) -> Any:
        sent = [rest[0]] if what == "get" else [encode_argument(part) for part in rest]
        return decode(send([what, target, *sent]), handle)

    def encode_argument(value: Any) -> Any:
        others: list[Any] = []
        encoded = encode(value, others)
        return _with_handles(encoded, others)

    def handle(place: int) -> Handle:
        return Handle(ask, place)

    namespace: dict[str, Any] = {"__name__": "tests", "math": math}
    try:
        for name, value in send(task["program"]).items():
            # A program that names a function "len" or "all" changes nothing for its tests.
            if not hasattr(builtins, name) and name not in namespace:
                namespace[name] = decode(value, handle)
        exec(compile(task["tests"], "tests", "exec"), namespace)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "passed"


def _with_handles(encoded: Any, others: list[Any]) -> Any:
    """Return encoded arguments in which handles have the place of the object in the program's process."""
    if not isinstance(encoded, list):
        return encoded
    if encoded[0] == "handle":
        other = others[encoded[1]]
        if not isinstance(other, Handle):
            raise TypeError(f"a test gives the program a {type(other).__name__}, which is no plain value")
        return ["handle", other.__dict__["place"]]
    return [encoded[0], *(_with_handles(item, others) for item in encoded[1:])]


def main() -> None:
    """Play one of the two parts: `program WRITE_TO CPU_S` or `tests WRITE_TO CPU_S READ_FROM`."""
    part, write_to, cpu_s, *read_from = sys.argv[1:]
    verdicts = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    writer = os.fdopen(int(write_to), "w")
    reader = os.fdopen(int(read_from[0])) if read_from else None
    sys.set_int_max_str_digits(0)
    sys.argv = [""]
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    confine(int(cpu_s))
    if part == "program":
        verdicts.close()
        writer.write('"ready"\n')
        writer.flush()
        run_program(writer)
        return
    if reader is not None and reader.readline() == '"ready"\n':
        verdicts.write('"ready"\n')
        verdicts.flush()
        verdicts.write(json.dumps(run_tests(writer, reader)))
        verdicts.flush()


if __name__ == "__main__":
    main()
