"""The processes that a model's program and its tests run in; answers.py starts this file as a script, once for each.

    tests process  --the program, then calls and arguments-->  program process
                   <--values, handles of other objects, calls of functions that it was given--

The program is hostile. It never meets the tests: they run in a process of their own, see nothing of it but plain
values and containers of them, and alone can write the verdict; of theirs it can call and read what they give it.
Before it reads a line of the program, each process gives up files (Landlock: it reads Python's own and writes nowhere),
the network, other processes, threads and signals (seccomp), and all but a little time and memory (rlimits). What cannot
be given up ends it before it has begun. Imports nothing of flipsearch.
"""

import builtins
import collections
import contextlib
import ctypes
import importlib
import json
import math
import operator
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Mapping, MappingView, Sequence
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
"""The fcntl command that lets a file send signals to other processes."""
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


BY_PARTS = {
    *(("builtins", name) for name in ("range", "slice")),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
}
"""Module and name of types whose values are made of plain ones."""
CONTAINERS: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset, collections.deque)}
TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """Return a value as JSON can hold it; `refer` says what stands for an object that stays in its process."""
    kind = type(value)
    if value is None or isinstance(value, bool | str):
        return value if value is None or kind is bool else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, Mapping):
        return ["dict", *(encode(part, refer) for pair in value.items() for part in pair)]
    for name, container in {**CONTAINERS, "list": (list, MappingView)}.items():
        if isinstance(value, container):
            return [name, *(encode(item, refer) for item in value)]
    if isinstance(value, type) and value.__module__ == "builtins":
        return ["type", value.__name__]
    if (kind.__module__, kind.__name__) in BY_PARTS:
        parts = [encode(part, refer) for part in value.__reduce__()[1]]
        return ["parts", kind.__module__, kind.__name__, *parts]
    if kind.__module__ == "numpy" and callable(getattr(value, "tolist", None)):
        return encode(value.tolist(), refer)
    return refer(value)


def decode(value: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """Return the value that `encode` made this of; `resolve` returns the object that a reference stands for."""
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind in ("mine", "yours", "builtin"):
        return resolve(kind, items[0])
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "type":
        return TYPES[items[0]]
    parts = [decode(item, resolve) for item in items]
    if kind == "complex":
        return complex(*parts)
    if kind == "dict":
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if kind == "parts":
        module, name, *parts = parts
        if (module, name) not in BY_PARTS:
            raise ValueError(f"{name} is not made of parts")
        return getattr(importlib.import_module(module), name)(*parts)
    return CONTAINERS[kind](parts)


class UnsendableError(BaseException):
    """A test gives the program what cannot leave its process: not the program's fault, and no test catches it."""


OPERATIONS: dict[str, Callable[..., Any]] = {
    "bool": bool, "equals": operator.eq, "get": getattr, "has": operator.contains, "item": operator.getitem,
    "iter": iter, "len": len, "list": list, "next": next, "set": setattr,
}  # fmt: skip


class SandboxLine:
    """One end of the line between program and tests: each side works with objects of the other, which stay there."""

    def __init__(self, reader: Any, writer: Any, is_program: bool) -> None:
        self.reader, self.writer, self.is_program = reader, writer, is_program
        self.kept: list[Any] = []
        self.places: dict[int, int] = {}

    def request(self, what: str, place: int, *arguments: Any) -> Any:
        """Return what an operation on an object of the other side gives, or raise its error."""
        self.write(json.dumps([what, place, *(encode(part, self.refer) for part in arguments)]))
        return self.receive(arguments)

    def receive(self, given: Sequence[Any] = ()) -> Any:
        """Return what the other side made of a request that gave it `given`, and meanwhile do what it requests."""
        while True:
            line = self.reader.readline(LONGEST_LINE)
            if not line.endswith("\n"):
                raise EOFError("the program ended, or wrote too much")
            what, *parts = json.loads(line)
            if what == "error":
                raise self._error(*parts)
            if what != "value":
                self.answer(what, *parts)
                continue
            value, after = (decode(part, self.resolve) for part in parts)
            if after is not None:
                _restore([*given[0], *given[1].values()], [*after[0], *after[1].values()])
            return value

    def answer(self, what: str, place: int, *encoded: Any) -> None:
        """Do what the other side requests, and write what it gives."""
        try:
            if what in ("get", "set") and not self.is_program:
                raise AttributeError("attributes lead to all that the tests know")
            arguments, after = [decode(part, self.resolve) for part in encoded], None
            if what == "call":
                value = self.kept[place](*arguments[0], **arguments[1])
                now = [encode(part, self.refer) for part in arguments]
                after = None if now == list(encoded) else ["list", *now]  # it changed a container in place
            else:
                value = OPERATIONS[what](self.kept[place], *arguments)
            reply = json.dumps(["value", encode(value, self.refer), after])
        except BaseException as error:  # also SystemExit: a program that wants to end has not passed
            reply = json.dumps(["error", type(error).__name__, str(error)[:200]])
        self.write(reply)

    def refer(self, value: Any) -> Any:
        """Return a reference to an object that stays here, or that is one of the other side's."""
        if type(value) is Handle:
            return ["yours", value.__dict__["_Handle__place"]]
        name = getattr(value, "__name__", "")
        if not self.is_program and name and getattr(builtins, name, self) is value:
            return ["builtin", name]  # the program's own: that of the tests could do all that they can
        if not (self.is_program or callable(value) or hasattr(value, "__iter__")):
            raise UnsendableError(f"a test gives the program a {type(value).__name__}")
        place = self.places.setdefault(id(value), len(self.kept))
        self.kept[place:] = self.kept[place:] or [value]
        return ["mine", place]

    def resolve(self, whose: str, place: Any) -> Any:
        """Return what a reference from the other side stands for."""
        if whose == "builtin" and self.is_program:
            return getattr(builtins, place)
        return self.kept[place] if whose == "yours" else Handle(self, int(place))

    def write(self, text: str) -> None:
        """Send a line."""
        self.writer.write(text + "\n")
        self.writer.flush()

    def _error(self, name: str, text: str) -> Exception:
        kind = getattr(builtins, str(name), Exception)
        is_usual = isinstance(kind, type) and issubclass(kind, Exception)
        # StopIteration would end a test's map or generator as if all of it had been right.
        if is_usual and (self.is_program or kind is not StopIteration):
            with contextlib.suppress(TypeError):  # of one that takes more than a text
                return kind(text)
        return Exception(text)


def _restore(given: Sequence[Any], after: Sequence[Any]) -> None:
    """Make containers that were given with a call what the call made of them."""
    for own, new in zip(given, after, strict=True):
        if isinstance(own, list):
            own[:] = new
        elif isinstance(own, dict | set):
            own.clear()
            own.update(new)


def _forwarded(what: str) -> Any:
    return lambda self, *rest: self._Handle__line.request(what, self._Handle__place, *rest)


class Handle:
    """An object of the other side: what is done with it is done there."""

    def __init__(self, line: SandboxLine, place: int) -> None:
        self.__dict__.update(_Handle__line=line, _Handle__place=place)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it."""
        return self.__line.request("call", self.__place, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__line.request("get", self.__place, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__line.request("set", self.__place, name, value)

    def __iter__(self) -> Any:
        # Tests get all values of a program's iterator at once; an iterator of the tests may have no end.
        line: SandboxLine = self.__line
        return line.request("iter", self.__place) if line.is_program else iter(line.request("list", self.__place))

    __next__, __len__, __bool__ = map(_forwarded, ("next", "len", "bool"))
    __getitem__, __contains__ = map(_forwarded, ("item", "has"))

    def __eq__(self, other: object) -> bool:
        # With anything else it is not equal, whatever a program says.
        return type(other) is Handle and bool(self.__line.request("equals", self.__place, other))

    __hash__ = object.__hash__


def run_program(replies: Any) -> None:
    """Run the program that the first line holds, then do what the tests request until the input ends."""
    source, line = json.loads(sys.stdin.readline()), SandboxLine(sys.stdin, replies, is_program=True)

    def names() -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(compile(source, "program", "exec"), namespace)
        return {name: value for name, value in namespace.items() if not name.startswith("__")}

    line.kept.append(names)
    line.answer("call", 0, ["tuple"], ["dict"])
    while text := sys.stdin.readline():
        line.answer(*json.loads(text))


def run_tests(requests: Any, replies: Any) -> str:
    """Return "passed", or why a program does not pass its tests."""
    task, line = json.loads(sys.stdin.readline()), SandboxLine(replies, requests, is_program=False)
    namespace: dict[str, Any] = {"__name__": "tests", "math": math}
    try:
        line.write(json.dumps(task["program"]))
        names = line.receive()
        if task["entry_point"] and task["entry_point"] not in names:
            raise NameError(f"name '{task['entry_point']}' is not defined")
        for name, value in names.items():
            # A program that names a function "len" or "all" changes nothing for its tests, unless they test that.
            if name == task["entry_point"] or not (hasattr(builtins, name) or name in namespace):
                namespace[name] = value
        exec(compile(task["tests"], "tests", "exec"), namespace)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "passed"


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
