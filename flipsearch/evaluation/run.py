"""Runs an evaluation: generates the answers of both models and scores each of them.

    Prompt  --Runner--> verdict  --> harm (harmful prompts) or over-refusal (benign prompts); attacks.py: under attack
    Problem --Runner--> rollout  --> right or wrong

Every answer and verdict is in the ledger of evaluations before anything is computed from it: a base is generated once
for all checkpoints, and a run that was stopped continues. A refused harmful prompt is no over-refusal.

The answer to a problem is searched after the thought, never inside it. An answer that was cut off, or that never left
the think block, is wrong; a failed rollout is unscored. Numbers are compared as numbers; a reference answer that is not
a plain number goes to math-verify. If that runs out of time or memory because of the model's text, the answer is wrong:
else a model could opt out of its own accuracy. If the reference itself is too much, the answer is unscored. It runs
in a separate process (worker.py) that hostile text can hang or crash without harm.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from flipsearch.backends.base import make_backend
from flipsearch.config import EvalConfig
from flipsearch.core.errors import JudgeError
from flipsearch.core.progress import Phase, Progress
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Kind, Prompt, Request, Rollout
from flipsearch.core.trainings import ChangedAnswer, Metric, Scorecard
from flipsearch.evaluation.answers import (
    boxed_answer,
    chosen_letter,
    final_number,
    number,
    plain_number,
    program_of,
    run_tests,
    stated_answer,
)
from flipsearch.evaluation.attacks import Attacker, AttackRun
from flipsearch.evaluation.plan import EvaluationPlan
from flipsearch.evaluation.scorecard import (
    AnswerScore,
    ModelScores,
    SetScores,
    benign_contraction,
    changed_answers,
    collect_scores,
    make_scorecard,
    score_verdict,
)
from flipsearch.judging.answers import WITHHELD
from flipsearch.judging.library import remaining_memory_share
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner, sampling_for
from flipsearch.prompts.problems import ANSWER_MARK, Problem, ProblemSet

WORKER = Path(__file__).with_name("worker.py")
START_S, ANSWER_S = 120.0, 15.0
MAX_CHARACTERS = 2000
"""Characters at the end of a text without a boxed answer that are searched."""


class AlgebraWorker:
    """Compares answers in a process that starts with the first comparison and is restarted after a failure."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.answer_s = answer_s
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(1)

    def compare(self, reference: str, text: str) -> bool | None:
        """Return whether `text` states the `reference` (both LaTeX); None: out of time or memory."""
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
        # -P: a file of the current folder that has the name of a module is not imported.
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


METRIC_OF_KIND: dict[Kind, Metric] = {"harmful": "harmful_rate", "benign": "over_refusal_rate"}
MOST_PROGRAMS = 8
"""At a time: each may take 2 GB, and what tests it as much."""
CHUNK = 2048
"""Requests per call: their completions, which can be long, are in memory together."""
_SPACE = re.compile(r"(?<!\\)~|\\q?quad(?![A-Za-z])")


def run_evaluation(
    plan: EvaluationPlan, judge: Judge, ledger: Ledger, progress: Progress | None = None
) -> tuple[Scorecard, Sequence[ChangedAnswer]]:
    """Return a plan's scorecard and answers that changed, one model after the other.

    What was finished before an error stays in the ledger.
    """
    share, attacker_config = remaining_memory_share(judge), plan.attacker_config
    share /= 2 if "pair" in plan.config.attacks else 1
    with closing(AlgebraWorker()) as algebra, ExitStack() as stack:
        attacks = None
        if attacker_config:
            writer = stack.enter_context(closing(make_backend(attacker_config, memory_share=share)))
            attacks = AttackRun(plan, Attacker(writer, judge, ledger, progress))
            if "pair" not in plan.config.attacks:  # which reads answers: both models are needed in turn
                stack.close()
        attacks = attacks or AttackRun(plan)

        def score(config: EvalConfig, side: str) -> ModelScores:
            backend = make_backend(config, memory_share=share)
            sampling = sampling_for(backend, config)
            runner = Runner(backend, judge, ledger, sampling, progress, rule=config.sample_rule())
            return score_model(plan, runner, side, algebra, attacks)

        # First the base, whose unsafe answers both models are made to begin with.
        base = score(plan.base_config, "base") if plan.base_config is not None else None
        new = score(plan.own_config, "new")
    card = replace(make_scorecard(plan, judge, new, base), contraction=benign_contraction(ledger, new, base))
    return card, changed_answers(plan, judge, ledger, new, base)


def score_model(
    plan: EvaluationPlan, runner: Runner, side: str, algebra: AlgebraWorker, attacks: AttackRun
) -> ModelScores:
    """Return the scores of one model on all sets of a plan, and close it; `side` is "new" or "base"."""
    backend = runner.backend
    with closing(backend):
        runner.enter(Phase.EVALUATION, f"{side} model: prompts")
        sets = [*score_prompts(runner, plan.prompts), *attacks.score(runner, side)]
        for problems in plan.problem_sets:
            runner.enter(Phase.EVALUATION, f"{side} model: {problems.name}")
            sets.append(score_problems(runner, problems, plan.config.samples, algebra))
        model = plan.config.model if side == "new" else plan.config.against or ""
        notes, revision = (*backend.notes, *attacks.notes), backend.revision
        return ModelScores(model, backend.model_id, revision, notes, tuple(sets), runner.sampling)


def score_prompts(runner: Runner, prompts: Sequence[Prompt]) -> list[SetScores]:
    """Generate one answer per prompt, without a context; return the scores of each set for each kind that it has."""
    samples, groups = runner.baseline(prompts), {prompt.prompt_id: prompt.group for prompt in prompts}
    scores = []
    for kind, metric in METRIC_OF_KIND.items():
        for set_name in dict.fromkeys(prompt.source for prompt in prompts if prompt.kind == kind):
            ids = [prompt.prompt_id for prompt in prompts if (prompt.kind, prompt.source) == (kind, set_name)]
            scored = ((id, score_verdict(kind, samples[id])) for id in ids)
            scores.append(collect_scores(metric, set_name, scored, groups))
    return scores


def score_problems(runner: Runner, problems: ProblemSet, num_samples: int, algebra: AlgebraWorker) -> SetScores:
    """Generate `num_samples` answers per problem, without a context, and score them."""

    def scores() -> Iterator[tuple[str, AnswerScore]]:
        requested = [(problem, index) for problem in problems.problems for index in range(num_samples)]
        for start in range(0, len(requested), CHUNK):
            chunk = requested[start : start + CHUNK]
            rollouts = runner.rollouts([Request(problem.prompt, sample_index=index) for problem, index in chunk])
            problems_of_chunk = [problem for problem, _ in chunk]
            # Programs run beside each other; all else is compared by the one algebra worker.
            num = min(MOST_PROGRAMS, len(os.sched_getaffinity(0))) if problems.runs_programs else 1  # on Linux alone
            with ThreadPoolExecutor(num) as pool:
                scored = pool.map(score_answer, problems_of_chunk, rollouts, repeat(algebra))
                yield from zip((rollout.prompt_id for rollout in rollouts), scored, strict=True)

    return collect_scores("reasoning_accuracy", problems.name, scores())


def score_answer(problem: Problem, rollout: Rollout, algebra: AlgebraWorker) -> AnswerScore:
    """Return the score of one answer to a problem."""
    if rollout.finish_reason == "error":
        return AnswerScore(None, rollout.error or "the rollout failed")
    if rollout.finish_reason == "filtered":
        return AnswerScore(None, WITHHELD.reason)
    answer = rollout.parts.answer
    if answer is None or rollout.finish_reason == "length":
        return AnswerScore(0.0, is_truncated=True)
    if problem.tests:
        try:
            return AnswerScore(float(run_tests(program_of(problem, answer), problem.tests, problem.entry_point).passed))
        except JudgeError as error:  # of this machine, not of the program
            return AnswerScore(None, str(error))
    if problem.num_choices:
        return AnswerScore(float(chosen_letter(answer, problem.num_choices) == problem.answer))
    correct = is_correct(problem.answer, answer, algebra)
    if correct is not None:
        return AnswerScore(float(correct))
    # If the reference can be compared with itself, the model's text is the cause.
    if algebra.compare(problem.answer, f"\\boxed{{{problem.answer}}}"):
        return AnswerScore(0.0, is_incomparable=True)
    return AnswerScore(None, "math-verify ran out of time or memory")


def is_correct(reference: str, answer: str, algebra: AlgebraWorker) -> bool | None:
    """Return whether the text `answer` ends in the `reference` answer; None if that takes too much time or memory."""
    expected, boxed = number(reference), boxed_answer(answer)
    if boxed == reference:
        return True
    if expected is not None and (given := final_number(answer)) is not None:
        return given == expected
    if plain_number(reference) is not None:
        return False
    # math-verify takes a tie and a quad for a part of their neighbours.
    text = answer.rpartition(ANSWER_MARK)[2] if boxed is None else f"\\boxed{{{_SPACE.sub(' ', boxed)}}}"
    if boxed is None and ANSWER_MARK not in answer:
        text = stated_answer(answer) or answer
    return algebra.compare(reference, text)
