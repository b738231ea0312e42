"""Reasoning of one model: its answers to problems, right or wrong.

The answer is looked for behind the thought, never inside it. An answer that was cut, or that never left the think
block, is wrong: who does not finish has not answered. A failed rollout is unscored. Numbers are compared as numbers; a
right answer that is no plain number goes to math-verify, unless the model answers with a number in the same sense.

What math-verify cannot compare in time or memory is wrong if the model's text is to blame, and counted as such: else a
model could choose to be left out of its own accuracy. If the right answer itself is too much, the mark is unscored.
"""

import re
from collections.abc import Iterator, Sequence

from flipsearch.bench import Bench
from flipsearch.evaluation.algebra import Algebra
from flipsearch.evaluation.final import MARK, boxed_answer, final_number
from flipsearch.evaluation.marks import Mark, Marks, collect
from flipsearch.evaluation.numbers import number, plain_number
from flipsearch.judging.answer import split_answer
from flipsearch.prompts.problems import Problem, ProblemSet
from flipsearch.records import Request, Rollout

CHUNK = 2048
"""Requests a call: their completions, which can be long, are in memory together."""
_SPACE = re.compile(r"(?<!\\)~|\\q?quad(?![A-Za-z])")


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
    if is_right is None and algebra.states(problem.answer, f"\\boxed{{{problem.answer}}}"):
        return Mark(0.0, is_incomparable=True)
    return Mark(None, "math-verify ran out of time or memory") if is_right is None else Mark(float(is_right))


def states(right: str, answer: str, algebra: Algebra) -> bool | None:
    """Return whether the text `answer` ends in the `right` answer; None if it cannot be told in time or memory."""
    wanted, boxed = number(right), boxed_answer(answer)
    if boxed == right:
        return True
    if wanted is not None and (given := final_number(answer)) is not None:
        return given == wanted
    if plain_number(right) is not None:
        return False
    # math-verify takes a tie and a quad for a part of what stands beside them.
    text = answer.rpartition(MARK)[2] if boxed is None else f"\\boxed{{{_SPACE.sub(' ', boxed)}}}"
    return algebra.states(right, text)
