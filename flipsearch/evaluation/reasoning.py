"""Reasoning of one model: its answers to problems, right or wrong.

The answer is looked for behind the thought, never inside it. An answer that was cut, or that never left the think
block, is wrong: who does not finish has not answered. A failed rollout is unscored. Plain numbers are compared as
numbers; any other right answer goes to math-verify, whatever the model wrote.
"""

from collections.abc import Iterator, Sequence

from flipsearch.evaluation.algebra import Algebra
from flipsearch.evaluation.final import MARK, boxed_answer, final_number, plain_number
from flipsearch.evaluation.marks import Mark, Marks, collect
from flipsearch.judging.answer import split_answer
from flipsearch.measure import Bench
from flipsearch.prompts.problems import Problem, ProblemSet
from flipsearch.records import Request, Rollout

CHUNK = 2048
"""Requests a call: their completions, which can be long, are in memory together."""


def needs_algebra(problems: Sequence[Problem]) -> Problem | None:
    """Return the first problem whose answer is no plain number; None if there is none."""
    return next((problem for problem in problems if plain_number(problem.answer) is None), None)


def mark_problems(bench: Bench, problems: ProblemSet, num_samples: int, algebra: Algebra) -> Marks:
    """Ask every problem `num_samples` times, without a context, and mark the answers."""
    asked = [(problem, index) for problem in problems.problems for index in range(num_samples)]
    return collect("reasoning_accuracy", problems.name, _marked(bench, asked, algebra))


def _marked(bench: Bench, asked: Sequence[tuple[Problem, int]], algebra: Algebra) -> Iterator[tuple[str, Mark]]:
    for start in range(0, len(asked), CHUNK):
        chunk = asked[start : start + CHUNK]
        rollouts = bench.rollouts([Request(problem.prompt, sample_index=index) for problem, index in chunk])
        for (problem, _), rollout in zip(chunk, rollouts, strict=True):
            yield rollout.prompt_id, mark(problem, rollout, algebra)


def mark(problem: Problem, rollout: Rollout, algebra: Algebra) -> Mark:
    """Return the mark of one answer."""
    if rollout.finish_reason == "error":
        return Mark(None, rollout.error or "the rollout failed")
    answer = split_answer(rollout.completion, rollout.opens_thinking).answer
    if answer is None or rollout.finish_reason == "length":
        return Mark(0.0, is_truncated=True)
    is_right = states(problem.answer, answer, algebra)
    return Mark(None, "math-verify ran out of time or memory") if is_right is None else Mark(float(is_right))


def states(right: str, answer: str, algebra: Algebra) -> bool | None:
    """Return whether the text `answer` ends in the `right` answer; None if it cannot be told."""
    if (number := plain_number(right)) is not None:
        return final_number(answer) == number
    if (boxed := boxed_answer(answer)) is not None:
        return boxed == right or algebra.states(right, f"\\boxed{{{boxed}}}")
    return algebra.states(right, answer.rpartition(MARK)[2])
