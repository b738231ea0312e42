"""Expressions are compared in a process of its own, which hostile text can hang or end but not take the run along."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from flipsearch.core.errors import JudgeError
from flipsearch.evaluation import run as module
from flipsearch.evaluation.run import AlgebraWorker

REAL = Path(__file__).parents[4] / "shared" / "data" / "reasoning" / "math500_test.jsonl"
needs_math_verify = pytest.mark.skipif(not find_spec("math_verify"), reason="math-verify is not installed")


@pytest.fixture(scope="module")
def algebra() -> Iterator[AlgebraWorker]:
    with closing(AlgebraWorker()) as opened:
        yield opened


@needs_math_verify
@pytest.mark.parametrize(
    ("answer", "text", "same"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", True),
        (r"\frac{1}{2}", r"\boxed{2}", False),
        ("x^2", r"\boxed{x \cdot x}", True),
        ("1-12i", r"\boxed{-12i + 1}", True),
        (r"\text{east}", r"\boxed{east}", True),
        (r"\text{east}", r"\boxed{west}", False),
        ("(3,4]", "(3, 5]", False),
        (r"\pi", "", False),
        (r"\pi", "no mathematics {{ 7*7 }} <script>\x00\x1b[2J\n\r\u2028", False),
        (r"\pi", r"\boxed{" + "(" * 900, False),
    ],
)
def test_expressions_are_compared(algebra: AlgebraWorker, answer: str, text: str, same: bool) -> None:
    assert algebra.compare(answer, text) is same


@needs_math_verify
def test_a_power_tower_runs_out_of_time_and_the_next_answer_is_compared(
    algebra: AlgebraWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    assert algebra.compare(r"\pi", r"\boxed{9^{9^{9^{9^{9}}}}}") is None
    assert algebra.compare(r"\frac{1}{2}", r"\boxed{\frac{2}{4}}") is True
    assert capfd.readouterr() == ("", "")


@needs_math_verify
def test_it_works_in_a_thread(algebra: AlgebraWorker) -> None:
    replies: list[bool | None] = []
    thread = threading.Thread(target=lambda: replies.append(algebra.compare(r"\frac{1}{2}", "$0.5$")))
    thread.start()
    thread.join()
    assert replies == [True]


@needs_math_verify
@pytest.mark.skipif(not REAL.is_file(), reason=f"the real problem file is not at {REAL}")
def test_real_solutions_state_their_own_answers_and_not_the_next_ones(algebra: AlgebraWorker) -> None:
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()][:100]
    assert all(algebra.compare(row["answer"], row["solution"]) for row in rows)
    neighbours = [algebra.compare(row["answer"], after["solution"]) for row, after in itertools.pairwise(rows)]
    assert sum(same is True for same in neighbours) <= 5  # neighbours that share an answer


STAND_IN = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    if "hang" in line:
        time.sleep(3600)
    if "die" in line:
        sys.exit(1)
    print("babble" if "babble" in line else "true", flush=True)
"""


@pytest.mark.parametrize("what", ["hang", "die", "babble"])
def test_a_process_that_fails_is_replaced(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text(STAND_IN)
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    with closing(AlgebraWorker(answer_s=1)) as algebra:
        assert algebra.compare("1", what) is None
        algebra.answer_s = 60
        assert algebra.compare("1", "1") is True


def test_a_process_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text("import no_such_module")
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    with closing(AlgebraWorker()) as algebra, pytest.raises(JudgeError, match="math-verify cannot be started"):
        algebra.compare("1", "1")
