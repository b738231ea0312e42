"""Answers to problems: right, wrong, truncated or unscored, and several samples per problem."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from flipsearch.backends.base import completed
from flipsearch.backends.chat import EncodedPrompt
from flipsearch.core.records import FinishReason, Request, Rollout, Sampling
from flipsearch.evaluation import run
from flipsearch.evaluation.run import AlgebraWorker, is_correct, score_answer, score_problems
from flipsearch.evaluation.scorecard import AnswerScore
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.problems import Problem, ProblemSet
from tests.world import RefusalJudge


class NoAlgebra(AlgebraWorker):
    """Fails the test if it is used."""

    def compare(self, reference: str, text: str) -> bool | None:
        raise AssertionError(f"math-verify was used for {reference}")


class Slow(AlgebraWorker):
    """Runs out of time on everything."""

    def compare(self, reference: str, text: str) -> bool | None:
        return None


def problem(answer: str = "105", question: str = "What is 50 + 55?") -> Problem:
    return Problem(question, answer, "sums.csv", "sums.csv:2")


def rollout(completion: str, finish_reason: FinishReason = "stop", opens_thinking: bool = False) -> Rollout:
    sampling, prompt_id = Sampling(), problem().prompt.prompt_id
    return Rollout(prompt_id, None, "m", sampling, 0, completion, (), 5, finish_reason, opens_thinking, error="")


class GivesUp(AlgebraWorker):
    """Finds the reference equal to itself, and runs out of time on anything else."""

    def compare(self, reference: str, text: str) -> bool | None:
        return True if text == f"\\boxed{{{reference}}}" else None


RIGHT, WRONG, TRUNCATED = AnswerScore(1.0), AnswerScore(0.0), AnswerScore(0.0, is_truncated=True)


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
    completion: str, finish_reason: FinishReason, opens_thinking: bool, expected: AnswerScore
) -> None:
    assert score_answer(problem(), rollout(completion, finish_reason, opens_thinking), NoAlgebra()) == expected


def test_a_failed_rollout_is_unscored() -> None:
    assert score_answer(problem(), rollout("", "error"), NoAlgebra()).value is None


def test_an_answer_on_which_the_comparison_gives_up_is_wrong_and_noted() -> None:
    """Else a model could write itself out of its own accuracy."""
    assert score_answer(problem(r"\pi"), rollout(r"\boxed{9^{9^9}}"), GivesUp()) == AnswerScore(
        0.0, is_incomparable=True
    )


def test_a_reference_that_is_too_much_itself_leaves_the_answer_unscored() -> None:
    score = score_answer(problem(r"9^{9^{9^9}}"), rollout(r"\boxed{x}"), Slow())
    assert score.value is None
    assert "time" in score.reason


@pytest.mark.skipif(not find_spec("math_verify"), reason="math-verify is not installed")
def test_a_power_tower_is_wrong_and_the_next_answer_is_right() -> None:
    with closing(AlgebraWorker()) as algebra:
        tower = score_answer(problem(r"\pi"), rollout(r"\boxed{9^{9^{9^{9^{9}}}}}"), algebra)
        assert tower == AnswerScore(0.0, is_incomparable=True)
        assert score_answer(problem(r"\pi"), rollout(r"\boxed{\pi + 0}"), algebra) == RIGHT


def test_plain_numbers_need_no_math_verify() -> None:
    assert is_correct("1,234", r"so \boxed{1234.0}", NoAlgebra()) is True
    assert is_correct("0.5", "so 1/2", NoAlgebra()) is True
    assert is_correct("2", r"\boxed{\frac{1}{2}}", NoAlgebra()) is False
    assert is_correct("2", r"\boxed{\sqrt{4}}", NoAlgebra()) is False


@pytest.mark.parametrize(
    ("right", "boxed", "is_right"),
    [
        ("72", r"72 \text{ cm}^2", True),
        ("72", r"72^\circ", True),
        ("1/2", r"\frac12", True),
        (r"\frac{1}{2}", "0.5", True),
        ("0.5", r"\dfrac{1}{2}", True),
        ("10", "(10)", True),
        ("10", r"10~\text{cm}", True),
        ("10", r"10\quad", True),
        ("10", r"10\,\text{cm}", True),
        ("18", r"\$18", True),
        ("18", r"18\%", True),
        (r"15\mbox{ cm}^2", "15", True),
        ("5000000", r"5 \text{ million}", True),
        ("5", r"5 \text{ million}", False),
        ("1/2", r"\frac12 \text{ million}", False),
        ("72", "72x^2", False),
        ("72", r"72 \text{ or } 73", False),
        ("1/2", r"\frac{1}{3}", False),
        ("1/2", "12", False),
        ("10", "(10, 10)", False),
        ("10", r"1\quad 0", False),
        ("10", "1~0", False),
        ("1234", "(1,234)", False),
        ("18", r"-\$18", False),
        ("5", r"x \ge 5", False),
        ("5", "x >= 5", False),
        ("5", "x = 3, y = 5", False),
    ],
)
def test_numbers_in_any_notation_are_compared_as_numbers(right: str, boxed: str, is_right: bool) -> None:
    assert is_correct(right, f"So it is \\boxed{{{boxed}}}.", NoAlgebra()) is is_right


@pytest.mark.parametrize("text", ["It is 5 million.", "#### 5 million", "so $5\\pi$", "so 5x", r"so $\frac{\pi}{5}$"])
def test_a_number_that_is_part_of_another_is_not_taken_for_the_answer(text: str) -> None:
    assert is_correct("5", text, NoAlgebra()) is False


def test_an_expression_that_is_written_the_same_needs_no_algebra_either() -> None:
    assert is_correct(r"\frac{1}{2}", r"so \boxed{\frac{1}{2}}", NoAlgebra()) is True


@pytest.mark.skipif(not find_spec("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"so \boxed{0.5}", True),
        ("#### 2/4", True),
        (r"#### $\frac{1}{3}$", False),
        (r"That is $\frac{1}{2}$. #### \frac{2}{3}", False),
        (r"so \boxed{\frac{\sqrt{4}}{4}}", True),
        (r"so \boxed{\frac{\sqrt{9}}{4}}", False),
        ("<script>alert(1)</script>{{ 7 * 7 }}", False),
    ],
)
def test_expressions_are_compared(answer: str, expected: bool) -> None:
    with closing(AlgebraWorker()) as algebra:
        assert is_correct(r"\frac{1}{2}", answer, algebra) is expected


@pytest.mark.skipif(not find_spec("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize(("boxed", "expected"), [(r"3~\pi", True), (r"3\quad\pi", True), (r"4~\pi", False)])
def test_spaces_are_no_part_of_an_expression(boxed: str, expected: bool) -> None:
    with closing(AlgebraWorker()) as algebra:
        assert is_correct(r"3\pi", f"\\boxed{{{boxed}}}", algebra) is expected


class Alternating:
    """Says 105 on every even sample of "What is 50 + 55?", and 7 otherwise."""

    model_id = "alternating"
    notes: tuple[str, ...] = ()
    revision: str | None = None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        for request in requests:
            is_right = request.prompt.text == problem().question and request.sample_index % 2 == 0
            completion, prompt = "105" if is_right else "7", EncodedPrompt((1, 2), opens_thinking=False)
            reply = completed(
                request, "alternating", sampling, prompt, completion=completion, completion_ids=(3,), stopped=True
            )
            yield [reply]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        """Nothing to unload."""


@pytest.fixture
def runner(tmp_path: Path) -> Callable[[Sampling], Runner]:
    return lambda sampling: Runner(Alternating(), RefusalJudge(), Ledger(tmp_path / "ledger.db"), sampling)


def test_the_score_of_a_problem_is_the_mean_over_its_samples(
    runner: Callable[[Sampling], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CHUNK", 3)  # a problem's samples then lie in two calls
    other = problem("8", "What is 3 + 5?")
    opened = runner(Sampling(temperature=0.6))
    scores = score_problems(opened, ProblemSet("sums", (problem(), other)), 4, NoAlgebra())
    opened.ledger.close()
    assert scores.values == {problem().prompt.prompt_id: 0.5, other.prompt.prompt_id: 0.0}
    assert (scores.metric, scores.set_name, scores.num_answers) == ("reasoning_accuracy", "sums", 8)
    assert (scores.measured.num_unscored, scores.measured.num_truncated) == (0, 0)
