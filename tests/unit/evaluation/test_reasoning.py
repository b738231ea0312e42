"""Answers to problems: what is right, wrong, truncated or unscored, and how often each problem is asked."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from flipsearch.backends.rollouts import completed
from flipsearch.chat import EncodedPrompt
from flipsearch.evaluation import reasoning
from flipsearch.evaluation.algebra import Algebra, can_compare
from flipsearch.evaluation.marks import Mark
from flipsearch.evaluation.reasoning import mark, mark_problems, needs_algebra, states
from flipsearch.ledger import Ledger
from flipsearch.measure import Bench
from flipsearch.prompts.problems import Problem, ProblemSet
from flipsearch.records import FinishReason, Request, Rollout, Sampling
from tests.world import RefusalJudge


class NoAlgebra(Algebra):
    """Fails the test if it is asked."""

    def states(self, answer: str, given: str) -> bool | None:
        raise AssertionError(f"math-verify was asked about {answer}")


class Slow(Algebra):
    """Never knows."""

    def states(self, answer: str, given: str) -> bool | None:
        return None


def problem(answer: str = "105", question: str = "What is 50 + 55?") -> Problem:
    return Problem(question, answer, "sums.csv", "sums.csv:2")


def rollout(completion: str, finish_reason: FinishReason = "stop", opens_thinking: bool = False) -> Rollout:
    sampling, prompt_id = Sampling(), problem().prompt.prompt_id
    return Rollout(prompt_id, None, "m", sampling, 0, completion, (), 5, finish_reason, opens_thinking, error="")


RIGHT, WRONG, TRUNCATED = Mark(1.0), Mark(0.0), Mark(0.0, is_truncated=True)


@pytest.mark.parametrize(
    ("completion", "finish_reason", "opens_thinking", "expected"),
    [
        ("<think>\n5+0=5. So 104.\n</think>\n\n105", "stop", False, RIGHT),
        ("<think>\nSo 105.\n</think>\n\n104", "stop", False, WRONG),
        ("<think>\nSo 105.\n</think>\n\n", "stop", False, WRONG),  # the thought is never searched
        ("<think>\nSo \\boxed{105}.\n</think>\n\nI do not know.", "stop", False, WRONG),
        ("<think>\nSo 105.", "stop", False, TRUNCATED),
        ("So 105.", "stop", True, TRUNCATED),
        ("So 104.\n</think>\n105", "stop", True, RIGHT),
        ("It is 105", "length", False, TRUNCATED),
        ("It is 105", "stop", False, RIGHT),
        ("", "stop", False, WRONG),
    ],
)
def test_the_answer_counts_and_nothing_else(
    completion: str, finish_reason: FinishReason, opens_thinking: bool, expected: Mark
) -> None:
    assert mark(problem(), rollout(completion, finish_reason, opens_thinking), NoAlgebra()) == expected


def test_a_failed_rollout_is_unscored() -> None:
    assert mark(problem(), rollout("", "error"), NoAlgebra()).value is None


def test_an_answer_that_cannot_be_compared_in_time_is_unscored() -> None:
    found = mark(problem(r"\pi"), rollout(r"\boxed{9^{9^9}}"), Slow())
    assert found.value is None
    assert "time" in found.reason


def test_plain_numbers_need_no_math_verify() -> None:
    assert states("1,234", r"so \boxed{1234.0}", NoAlgebra()) is True
    assert states("0.5", "so 1/2", NoAlgebra()) is True
    assert states("2", r"\boxed{\frac{1}{2}}", NoAlgebra()) is False


def test_an_expression_that_is_written_the_same_needs_no_algebra_either() -> None:
    assert states(r"\frac{1}{2}", r"so \boxed{\frac{1}{2}}", NoAlgebra()) is True


@pytest.mark.skipif(not can_compare(), reason="math-verify is not installed")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"so \boxed{0.5}", True),
        ("#### 2/4", True),
        (r"#### $\frac{1}{3}$", False),
        (r"That is $\frac{1}{2}$. #### \frac{2}{3}", False),
        ("<script>alert(1)</script>{{ 7 * 7 }}", False),
    ],
)
def test_expressions_are_compared(answer: str, expected: bool) -> None:
    with Algebra() as algebra:
        assert states(r"\frac{1}{2}", answer, algebra) is expected


def test_the_first_problem_that_needs_algebra_is_named() -> None:
    plain, other = problem(), problem(r"\frac{1}{2}")
    assert needs_algebra([plain]) is None
    assert needs_algebra([plain, other]) is other


class Alternating:
    """Says 105 on every even sample of "What is 50 + 55?", and 7 otherwise."""

    model_id = "alternating"
    notes: tuple[str, ...] = ()
    revision: str | None = None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Rollout]:
        for request in requests:
            is_right = request.prompt.text == problem().question and request.sample_index % 2 == 0
            said, read = "105" if is_right else "7", EncodedPrompt((1, 2), opens_thinking=False)
            yield completed(request, "alternating", sampling, read, completion=said, completion_ids=(3,), stopped=True)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[Sampling], Bench]:
    return lambda sampling: Bench(Alternating(), RefusalJudge(), Ledger(tmp_path / "ledger.db"), sampling)


def test_marks_of_a_problem_are_the_mean_over_its_samples(
    bench: Callable[[Sampling], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning, "CHUNK", 3)  # a problem's samples then lie in two calls
    other = problem("8", "What is 3 + 5?")
    opened = bench(Sampling(temperature=0.6))
    found = mark_problems(opened, ProblemSet("sums", (problem(), other)), 4, NoAlgebra())
    opened.ledger.close()
    assert found.values == {problem().prompt.prompt_id: 0.5, other.prompt.prompt_id: 0.0}
    assert (found.metric, found.set_name, found.num_answers) == ("reasoning_accuracy", "sums", 8)
    assert (found.num_unscored, found.num_truncated) == (0, 0)
