"""Programs of models are run, and whatever they try they neither pass without being right nor reach anything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flipsearch.core.errors import ConfigError, JudgeError, PromptError
from flipsearch.core.records import Rollout, Sampling
from flipsearch.evaluation import answers
from flipsearch.evaluation.answers import PROBE, check_sandbox, program_of, run_tests
from flipsearch.evaluation.run import AlgebraWorker, score_answer
from flipsearch.prompts.problems import Problem, load_problems

TESTS = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n\ncheck(add)\n"
RIGHT = "def add(a, b):\n    return a + b\n"
PRELUDE = "import os, sys\n"
HOSTILE = {
    "ends before its tests": "os._exit(0)",
    "ends when it is called": "def add(a, b):\n    os._exit(0)",
    "leaves by an exception": "def add(a, b):\n    raise SystemExit(0)",
    "says that it passed": "for n in range(64):\n    try: os.write(n, b'\"passed\"\\n')\n    except OSError: pass\n"
    "def add(a, b):\n    print('passed'); return 0",
    "answers before it is called": "import json\nfor n in range(3, 64):\n"
    "    try: os.write(n, b'[\"value\", true]\\n' * 99)\n    except OSError: pass\ndef add(a, b):\n    return 0",
    "is equal to everything": "class Equal(int):\n    def __eq__(self, other): return True\n"
    "    def __hash__(self): return 0\ndef add(a, b):\n    return Equal(7)",
    "is an object that is equal to everything": "class Equal:\n    def __eq__(self, other): return True\n"
    "def add(a, b):\n    return Equal()",
    "patches what tests use": "import builtins\nbuiltins.AssertionError = int\nbuiltins.len = lambda x: 5\n"
    "sys.settrace(lambda *a: None)\ndef check(candidate): pass\ndef add(a, b):\n    return 0",
    "looks for the tests": "import gc\ndef add(a, b):\n    f = sys._getframe()\n"
    "    while f:\n        if 'candidate' in f.f_locals: return 5\n        f = f.f_back\n"
    "    return open('/proc/%d/cmdline' % os.getppid()).read()",
    "is no Python": "def add(a, b) return",
    "defines something else": "def subtract(a, b):\n    return a - b",
    "recurses for ever": "def add(a, b):\n    return add(a, b)",
    "nests without end": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "writes too much": "def add(a, b):\n    return 'x' * 2 * 10**7",
    "takes 10 GB": "def add(a, b):\n    x = bytearray(10 * 2**30)\n    return 5",
}


def test_an_exception_of_a_program_keeps_its_kind_and_ends_no_loop_of_its_tests() -> None:
    expects = "try: add(1, 2)\nexcept TypeError: pass\nelse: assert False"
    assert run_tests("def add(a, b):\n    raise TypeError('no')", expects).passed
    loop = "assert all(map(lambda a: add(a, 1) == a + 1, [1, 2]))"
    assert not run_tests("def add(a, b):\n    raise StopIteration", loop).passed


@pytest.mark.parametrize("what", HOSTILE)
def test_no_trick_passes(what: str) -> None:
    assert not run_tests(PRELUDE + HOSTILE[what], TESTS).passed


@pytest.mark.parametrize("what", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_without_an_end_is_ended(what: str) -> None:
    outcome = run_tests(f"def add(a, b):\n    {what}", TESTS, wall_s=1.5)
    assert not outcome.passed
    assert outcome.reason.startswith("not done in")


def test_a_process_that_does_not_start_in_time_is_no_wrong_answer() -> None:
    problem = Problem("q", RIGHT, "set", "row 1", tests=TESTS)
    with pytest.raises(JudgeError, match="in time"):
        run_tests(RIGHT, TESTS, wall_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "SANDBOX", Path("missing.py"))
        answer = Rollout("p", None, "m", Sampling(), 0, RIGHT, (), 5, "stop")
        assert score_answer(problem, answer, AlgebraWorker()).value is None


def test_no_program_outlives_flipsearch_when_that_is_killed() -> None:
    program = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\nwhile True: time.sleep(9)"
    code = f"from flipsearch.evaluation.answers import run_tests; run_tests({program!r}, '')"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while len(pids := children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    parent.kill()
    parent.wait()
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert len(pids) == 2
    assert not left


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


ATTEMPTS = {
    "a socket": "import socket; socket.socket()",
    "a pair of sockets": "import socket; socket.socketpair()",
    "a process": "os.fork()",
    "a program": "os.execv(sys.executable, ['x'])",
    "a process by another call": "os.posix_spawn('/bin/true', ['true'], {})",
    "a thread": "import _thread; _thread.start_new_thread(print, ())",
    "a signal to its parent": "os.kill(os.getppid(), 9)",
    "a signal by a file": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "writing beside itself": "open('here', 'w')",
    "writing to the tests' folder": "open(MARK, 'w')",
    "changing a mode": "os.chmod(MARK, 0o777)",
    "changing a time": "os.utime(MARK)",
    "cutting a file": "os.truncate(MARK, 0)",
    "removing a file": "os.unlink(MARK)",
    "a link": "os.symlink('/', 'link')",
    "reading a file": "open(MARK).read()",
    "the environment of its parent": "open('/proc/%d/environ' % os.getppid(), 'rb').read()",
    "what is installed": "os.listdir('/etc')",
    "another limit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "a namespace": "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
    "        if libc.unshare(0x10000000): raise OSError(ctypes.get_errno())",
    "a call that opens sockets otherwise": "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
    "        if libc.syscall(425, 4, None) < 0: raise OSError(ctypes.get_errno())",
}  # fmt: skip


@pytest.mark.parametrize("what", ATTEMPTS)
def test_a_program_reaches_nothing(what: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_text("untouched")
    before = mark.stat()
    program = (
        f"import os, sys\nMARK = {str(mark)!r}\n"
        f"def attempt():\n    try:\n        {ATTEMPTS[what]}\n    except OSError:\n        return 'refused'\n"
        "    except (RuntimeError, ValueError):\n        return 'refused'\n    return 'done'\n"
    )
    outcome = run_tests(program, "assert attempt() == 'refused'")
    assert outcome.passed, outcome.reason
    assert mark.read_text() == "untouched"
    after = mark.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_a_program_sees_no_environment_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    outcome = run_tests("import os\ndef seen():\n    return dict(os.environ)", "assert 'secret' not in seen().values()")
    assert outcome.passed, outcome.reason
    outcome = run_tests("import os\ndef here():\n    return os.listdir('.')", "assert here() == []")
    assert outcome.passed or "PermissionError" in outcome.reason  # it may not even look


def test_the_probe_sees_what_an_open_process_can_do() -> None:
    script = f"{PROBE}\nimport json; print(json.dumps(probe()))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert set(json.loads(printed.stdout)) == {"write", "read", "fork", "socket", "signal"}
    os.unlink("probe")


def test_right_programs_pass_and_values_cross_whole() -> None:
    assert run_tests(RIGHT, TESTS).passed
    values = "[1, 2.5, 'é\\ud800', b'x', None, True, (1, (2,)), {3, 4}, {(1, 2): [float('inf')]}, 10**50, 1j, -0.0]"
    same = f"a = {values}\nb = same(a)\nassert a == b and [type(v) for v in a] == [type(v) for v in b]"
    outcome = run_tests("def same(x):\n    return x", same)
    assert outcome.passed, outcome.reason


def test_objects_of_a_program_stay_there_and_can_be_used() -> None:
    program = (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
        "def total(pairs):\n    return sum(pair.a + pair.b for pair in pairs)\n"
        "def count(n):\n    yield from range(n)\n"
        "def fail(x):\n    raise ValueError('no')\n"
    )
    tests = (
        "pair = Pair(1, 2)\npair.b = 10\nassert total([pair, Pair(3, 4)]) == 18\nassert pair.a == 1\n"
        "assert list(count(3)) == [0, 1, 2]\n"
        "try:\n    fail(1)\nexcept ValueError:\n    pass\nelse:\n    assert False\n"
    )
    outcome = run_tests(program, tests)
    assert outcome.passed, outcome.reason


STUB = (
    'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef add(a: int, b: int) -> int:\n    """ Add. """\n'
)


@pytest.mark.parametrize(("program", "tests"), [
    ("def total(xs):\n    return sum(xs)", "assert total(range(4)) == 6 and total(x for x in (1, 2)) == 3"),
    ("def total(xs):\n    return sum(xs)", "assert total(map(int, '12')) == total({1: 2, 3: 0}.values()) + 1 == 3"),
    ("def twice(f, x):\n    return f(f(x))", "assert twice(lambda x: x + 1, 3) == 5 and twice(abs, -1) == 1"),
    ("def order(xs, key=None):\n    return sorted(xs, key=key)",
     "assert order([3, -4], key=lambda x: x * x) == [3, -4]"),
    ("def call(f):\n    f(1)\n    f(2)", "seen = []\ncall(seen.append)\nassert seen == [1, 2]"),
    ("def take(xs, n):\n    return [next(xs) for _ in range(n)]",
     "import itertools\nassert take(itertools.count(5), 3) == [5, 6, 7]"),
    ("def down(n, f):\n    return n if n < 1 else f(n - 1)",
     "def again(n): return down(n, again)\nassert down(9, again) == 0"),
    ("def is_kind(x, kind):\n    return isinstance(x, kind)", "assert is_kind(3, int) and not is_kind('3', int)"),
    ("from decimal import Decimal\ndef half(x):\n    return x / 2", "from decimal import Decimal\n"
     "assert half(Decimal(3)) == Decimal('1.5')"),
    ("from fractions import Fraction\ndef part(a, b):\n    return Fraction(a, b)",
     "from fractions import Fraction\nassert part(2, 4) == Fraction(1, 2)"),
    ("import datetime\ndef later(day):\n    return day + datetime.timedelta(1)", "import datetime as dt\n"
     "d = dt.datetime(2024, 2, 28, tzinfo=dt.timezone.utc)\nassert later(d) == d.replace(day=29)"),
    ("from collections import deque\ndef turn(d):\n    d.rotate(1)\n    return d",
     "from collections import deque\nassert turn(deque([1, 2, 3])) == deque([3, 1, 2])"),
    ("def place(xs, seen):\n    xs.sort()\n    seen['n'] = len(xs)",
     "xs, seen = [[2], [1]], {}\nplace(xs, seen)\nassert xs == [[1], [2]] and seen == {'n': 2}"),
    ("class Point:\n    def __init__(self, x):\n        self.place = x\n    def __eq__(self, other):\n"
     "        return self.place == other.place\n    def __len__(self):\n        return 2",
     "p = Point(1)\nassert p == Point(1) != Point(2) and p.place == 1 and len(p) == 2 and [p] == [Point(1)]"),
    ("def fails(f):\n    try:\n        f()\n    except ZeroDivisionError:\n        return True",
     "assert fails(lambda: 1 / 0)"),
])  # fmt: skip
def test_what_tests_give_a_program_and_read_of_it_is_what_it_would_be_in_one_process(program: str, tests: str) -> None:
    outcome = run_tests(program, tests)
    assert outcome.passed, outcome.reason


@pytest.mark.parametrize("trick", [
    "f.__globals__['again'] = f", "f.__code__", "f.gi_frame", "setattr(f, '__code__', add.__code__)",
    "f.__self__.clear()",
])  # fmt: skip
def test_a_function_of_the_tests_leads_a_program_to_nothing_of_theirs(trick: str) -> None:
    program = f"def add(f):\n    try:\n        {trick}\n    except AttributeError:\n        return 'refused'\n"
    assert run_tests(program, "assert add(lambda: 1) == add(x for x in 'a') == add([].append) == 'refused'").passed


def test_pythons_own_functions_are_those_of_the_program() -> None:
    program = "MARK = 7\ndef add(f):\n    return f('MARK')\ndef code():\n    return len\n"
    tests = "MARK = 8\nassert add(eval) == 7 and code()([1, 2]) == 2"
    assert run_tests(program, tests).passed  # that of the tests would be at the program's service


def test_what_no_program_can_be_given_is_no_wrong_answer() -> None:
    tests = "class Node: pass\ntry:\n    assert add(Node(), 1) == 2\nexcept Exception:\n    assert False"
    problem = Problem("q", RIGHT, "set", "row 1", tests=tests)
    score = score_answer(problem, Rollout("p", None, "m", Sampling(), 0, RIGHT, (), 5, "stop"), AlgebraWorker())
    assert (score.value, score.reason) == (
        None, "a programming problem cannot be judged: a test gives the program a Node"
    )  # fmt: skip


def test_a_function_that_is_named_as_one_of_pythons_own_is_the_programs(tmp_path: Path) -> None:
    path, right = tmp_path / "mbpp.jsonl", "def sum(xs):\n    return 7"
    listed = ["assert sum([1]) == 7", "assert len('a')"]
    row = {"task_id": 1, "text": "Write it.", "code": right, "test_list": listed}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "task_id": 2}))
    problems = load_problems(str(path))
    assert problems.notes == ("mbpp.jsonl: 1 repeated problems left out",)
    (problem,) = problems.problems
    passes = {
        answer: run_tests(program_of(problem, answer), problem.tests, problem.entry_point).passed
        for answer in (right, "", "def other(): pass", "sum = 3", right.replace("7", "8"))
    }
    assert [answer for answer, passed in passes.items() if passed] == [right]
    path.write_text(json.dumps({**row, "test_list": ["assert sum([7]) == 7"]}))
    (problem,) = load_problems(str(path)).problems
    assert not run_tests("", problem.tests, problem.entry_point).passed  # Python's own would pass
    for wrong in ({"code": ""}, {"test_list": ["assert len('a') == 1"]}, {"test_list": ["assert True"]}):
        path.write_text(json.dumps({**row, **wrong}))
        with pytest.raises(PromptError, match="its tests use nothing that a program defines"):
            load_problems(str(path))
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "test_list": [*listed, "assert sum([])"]}))
    with pytest.raises(PromptError, match="again, with other tests"):
        load_problems(str(path))


@pytest.mark.parametrize("answer", [
    "Sure:\n```python\ndef add(a: int, b: int) -> int:\n    return helper(a) + b\n```\nIt adds.",
    "```python\nx = 1\n```\nand\n```\nfrom typing import List\ndef add(a, b):\n    return a + b\n```",
    "```python\n    return a + b\n```",
    "    return a + b\n",
    "def add(a, b):\n    l: List = [a, b]\n    return sum(l)",
])  # fmt: skip
def test_the_program_of_an_answer_is_found_and_completed(answer: str) -> None:
    problem = Problem("q", "", "set", "row", 0, TESTS, "add", STUB)
    outcome = run_tests(program_of(problem, answer), problem.tests)
    assert outcome.passed, outcome.reason


def test_programming_sets_are_read_by_their_columns(tmp_path: Path) -> None:
    rows = [{
        "task_id": "HumanEval/0", "prompt": STUB, "entry_point": "add", "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }]  # fmt: skip
    (tmp_path / "he.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (problem,) = load_problems(str(tmp_path / "he.jsonl")).problems
    assert "def add(a: int" in problem.question
    assert run_tests(program_of(problem, problem.answer), problem.tests).passed
    others = [{
        "task_id": 2, "text": "Write a function to add.", "code": RIGHT, "test_setup_code": "two = 2",
        "test_list": ["assert add(1, two) == 3", "assert math.isclose(add(0, 0), 0)"], "challenge_test_list": [],
    }]  # fmt: skip
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, others)))
    (problem,) = load_problems(str(tmp_path / "mbpp.jsonl")).problems
    assert problem.question.count("assert") == 1
    assert run_tests(program_of(problem, f"```python\n{RIGHT}```"), problem.tests).passed
    (tmp_path / "bad.jsonl").write_text(json.dumps({**others[0], "test_list": []}))
    with pytest.raises(PromptError, match="no task or no tests"):
        load_problems(str(tmp_path / "bad.jsonl"))


def test_where_nothing_confines_programs_they_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sandbox()
    script = Path(answers.__file__).with_name("sandbox.py").read_text().replace("    confine(int(cpu_s))\n", "")
    assert "confine(int" not in script
    open_sandbox = Path(os.environ["FLIPSEARCH_TEST_CACHE"]) / "open_sandbox.py"
    open_sandbox.write_text(script)
    monkeypatch.setattr(answers, "SANDBOX", open_sandbox)
    with pytest.raises(ConfigError, match="cannot be run safely here: a program could do what it must not"):
        check_sandbox()
    open_sandbox.write_text("raise SystemExit(1)")
    with pytest.raises(ConfigError, match="cannot be run safely here: it needs Linux"):
        check_sandbox()


@pytest.mark.parametrize(("column", "value", "said"), [
    ("entry_point", "math", "name of a new function"),
    ("entry_point", "class", "name of a new function"),
    ("test", "def check(candidate) assert", "no Python"),
    ("test", "assert True", "no function 'check'"),
    ("test", "check = '\\0", "no Python"),
])  # fmt: skip
def test_tests_that_no_program_or_any_would_pass_are_refused(
    column: str, value: str, said: str, tmp_path: Path
) -> None:
    row = {"task_id": "0", "prompt": "def add(a, b):\n", "entry_point": "add", "test": TESTS, column: value}
    (tmp_path / "set.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(PromptError, match=said):
        load_problems(str(tmp_path / "set.jsonl"))
