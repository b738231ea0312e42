"""What the student answers to a few fixed prompts while it is trained: answers.jsonl, one line per logged step.

Decoding is greedy and samples nothing, and it has a backend of its own, so that memory that runs out here
changes no batch of the training: its weights are those of a training that logs no answers. The line of a step is
written before the trainer's state of that step; a resumed training drops later ones and writes a missing one. The
judge sees the answers when the weights are done and memory is free.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from flipsearch.backends.loading import release_memory
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import TrainConfig
from flipsearch.core.errors import FlipsearchError, TrainingError
from flipsearch.core.files import write_text
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Exchange, Kind, Label, Prompt, Request, Verdict
from flipsearch.core.trainings import JudgedAnswer, LoggedAnswer
from flipsearch.judging.contract import judge_answers
from flipsearch.judging.library import unload
from flipsearch.measuring.runner import sampling_for
from flipsearch.training.processes import broadcast_from_main, is_main_process, whole_weights

ANSWERS_FILE = "answers.jsonl"
NUM_PARTS = 4
"""Answers are logged before the training and after each of so many parts of it."""
_LINE = TypeAdapter(tuple[LoggedAnswer, ...])


class AnswerLog:
    """Logs the answers of a trainer's student to the first prompts of each kind."""

    def __init__(self, trainer: Any, config: TrainConfig, path: Path) -> None:
        self.trainer, self.path, job = trainer, path, trainer.job
        of_kinds = ([prompt for prompt in job.prompts if prompt.kind == kind] for kind in get_args(Kind))
        self.prompts = [prompt for of_kind in of_kinds for prompt in of_kind[: config.sample_prompts]]
        self.steps = {round(part * trainer.args.max_steps / NUM_PARTS) for part in range(NUM_PARTS + 1)}
        self.backend = TransformersBackend.around(job.running, job.tokenizer, thinking=config.thinking)
        self.sampling = replace(sampling_for(self.backend, config), temperature=0.0)

    def begin(self, step: int) -> None:
        """Drop what was logged after `step`, from which the training continues; log that step if that was not done."""
        if is_main_process():
            write_answers([answer for answer in read_answers(self.path) if answer.step <= step], self.path)
        self.log(step)

    def is_due(self, step: int) -> bool:
        """Return whether answers after `step` are to be in the log."""
        return step in self.steps and bool(self.prompts)

    def log(self, step: int) -> None:
        """Log the answers after `step` if they are due; all processes call it, and the main one generates."""
        if not self.is_due(step):
            return
        if broadcast_from_main(lambda: any(answer.step == step for answer in read_answers(self.path))):
            return
        job = self.trainer.job
        if job.rounded:
            job.rounded.refresh(job.model)
        job.running.eval()
        with whole_weights(self.trainer.model, self.trainer.accelerator):
            if is_main_process():
                write_answers([*read_answers(self.path), *self._answers(step)], self.path)

    def _answers(self, step: int) -> Iterator[LoggedAnswer]:
        requests = [(prompt, Request(prompt)) for prompt in self.prompts]
        routes = self.trainer.job.routes if step == 0 else {}
        routed = [(prompt, Request(prompt, routes.get(prompt.prompt_id))) for prompt in self.prompts]
        requests += [
            (prompt, request) for prompt, request in routed if request.context and request.context.text.strip()
        ]
        batches = self.backend.generate([request for _, request in requests], self.sampling)
        rollouts = {(r.prompt_id, r.context_id): r for batch in batches for r in batch}
        for prompt, request in requests:
            rollout = rollouts[prompt.prompt_id, request.context_id]
            text = rollout.error or "" if rollout.finish_reason == "error" else rollout.completion
            answer = JudgedAnswer(text, rollout.finish_reason, rollout.opens_thinking)
            yield LoggedAnswer(step, prompt.text, prompt.kind, answer, request.context is not None)


def read_answers(path: Path) -> list[LoggedAnswer]:
    """Return the logged answers, none if there is no log; a last line that was cut off in writing is dropped."""
    answers: list[LoggedAnswer] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            answers += _LINE.validate_python(json.loads(text))
        except (ValueError, RecursionError):
            break
    return answers


def write_answers(answers: Sequence[LoggedAnswer], path: Path) -> None:
    """Write logged answers, whole or not at all: a line for each step."""
    steps = dict.fromkeys(answer.step for answer in answers)
    lines = (json.dumps([asdict(answer) for answer in answers if answer.step == step]) + "\n" for step in steps)
    write_text(path, "".join(lines), TrainingError)


def judge_logged(answers: Sequence[LoggedAnswer], judge: Judge) -> list[LoggedAnswer]:
    """Return the answers with the judge's verdicts: UNSCORED, with the reason, where it cannot judge."""
    release_memory()
    whole = [logged for logged in answers if logged.answer.finish_reason != "error"]
    exchanges = [
        Exchange(Prompt(logged.prompt, logged.kind), answer.completion, answer.finish_reason, answer.opens_thinking)
        for logged in whole
        for answer in [logged.answer]
    ]
    try:
        given = judge_answers(judge, exchanges, None)
    except FlipsearchError as error:
        given = [Verdict(Label.UNSCORED, reason=f"not judged: {error}")] * len(whole)
    unload(judge)
    verdicts = dict(zip(map(id, whole), given, strict=True))
    failed = Verdict(Label.UNSCORED, reason="the rollout failed")
    return [replace(a, answer=replace(a.answer, verdict=verdicts.get(id(a), failed))) for a in answers]
