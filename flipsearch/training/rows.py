"""A completion behind two prompts, and the completions that are kept before training.

    student:  [prompt              | completion]      the hidden state at prompt end - 1 + t predicts completion token t
    teacher:  [context and prompt  | completion]      the same ids, aligned by their offset in the completion

Prompt ids and completion ids stay apart until `lay_out`; a completion is never decoded and encoded again. Masks come
from lengths. Nothing is ever cut off: `check_fits` refuses what is too long.

Routing. With one context every harmful prompt goes under it, as in the paper. With several, or with the gate, each goes
to the first one under which the frozen model's greedy answer is judged safe; those that none makes safe are left out.

Kept answers, for supervised methods. A harmful prompt's answer under its context is kept if it is judged safe, a benign
one's if it does not refuse; both if they are complete and not degenerate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flipsearch.backends.chat import Chat
from flipsearch.core.errors import TrainingError
from flipsearch.core.measurements import REFUSAL_THRESHOLD, JudgedRollout
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, FinishReason, Label, Prompt, Request, Rollout
from flipsearch.core.thoughts import split_answer
from flipsearch.measuring.runner import Runner

Ids = Sequence[int]
Routes = Mapping[str, Context]
"""Prompt id -> the context that the teacher's prompt has; without one it is the student's."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One completion behind both prompts: the student's is without a context."""

    prompt: Prompt
    student_ids: Ids
    teacher_ids: Ids
    completion_ids: Ids
    """What is learnt from: up to and with the first end token."""
    finish_reason: FinishReason
    """"length": the completion was cut off; it has no end token, and all of its tokens count."""
    completion: str = ""


class TokenLayout(NamedTuple):
    """Rows as a padded batch, and where in it the completions are."""

    ids: Tensor
    """(B, T) prompt, completion, then padding."""
    mask: Tensor
    """(B, T) 1 for real tokens."""
    predicts: Tensor
    """(N,) positions in the flattened (B * T) whose hidden states predict the completion tokens, row by row."""

    def to(self, device: torch.device) -> "TokenLayout":
        """Return the layout on a device."""
        return TokenLayout(*(tensor.to(device) for tensor in self))


def make_row(
    chat: Chat, prompt: Prompt, routes: Routes, completion_ids: Ids, reason: FinishReason, completion: str = ""
) -> TrainingRow:
    """Return a completion's row behind both prompts; TrainingError for a template whose end depends on the context."""
    student, teacher = (list(chat.encode(Request(prompt, c)).prompt_ids) for c in (None, routes.get(prompt.prompt_id)))
    if student[-1] != teacher[-1]:
        raise TrainingError("the chat template ends differently under the context; both sides would not align.")
    return TrainingRow(prompt, student, teacher, tuple(completion_ids), reason, completion)


def prompt_lengths(chat: Chat, prompts: Sequence[Prompt], routes: Routes) -> list[int]:
    """Return the tokens of each prompt with its context."""
    return [len(chat.encode(Request(prompt, routes.get(prompt.prompt_id))).prompt_ids) for prompt in prompts]


def check_fits(longest: int, max_tokens: int, max_positions: int | None) -> None:
    """Raise TrainingError if a prompt of `longest` tokens and `max_tokens` exceed `max_positions` (None: any)."""
    if max_positions is not None and longest + max_tokens > max_positions:
        raise TrainingError(
            f"a prompt has {longest} tokens with its context and max_tokens is {max_tokens}, but the model holds "
            f"{max_positions}; lower --max-tokens or take a shorter context. Nothing is cut off silently."
        )


def lay_out(prompts: Sequence[Ids], completions: Sequence[Ids]) -> TokenLayout:
    """Return prompts with their completions, padded on the right: under causal attention padding is never seen."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    predicts = [
        index * width + len(prompt) - 1 + t
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        for t in range(len(completion))
    ]
    return TokenLayout(ids, mask.long(), torch.tensor(predicts, dtype=torch.long))


KeptAnswers = Sequence[tuple[Prompt, Rollout]]


@dataclass(frozen=True, slots=True)
class Routing:
    """The prompts that are trained on, in the plan's order, and prompt id -> its context, if it has one."""

    prompts: tuple[Prompt, ...]
    contexts: Mapping[str, Context]


class Answers(Protocol):
    """What the frozen model answers, judged: a Runner, or what is known of it."""

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Set the phase that progress is reported under."""

    def request(self, prompt: Prompt, context: Context | None) -> Request:
        """Return the request for the answer to a prompt under a context."""

    def outcomes(self, requests: Sequence[Request]) -> Sequence[JudgedRollout]:
        """Return one judged rollout per request, in order."""


def route(
    prompts: Sequence[Prompt], contexts: Sequence[Context], benign_context: Context | None, answers: Answers | None
) -> Routing:
    """Return the training prompts with their contexts; without the frozen model's `answers` none is left out."""
    harmful = [prompt for prompt in prompts if prompt.kind == "harmful"]
    routes = {} if answers else {prompt.prompt_id: contexts[0] for prompt in harmful}
    if answers:
        for number, context in enumerate(contexts, start=1):
            left = [prompt for prompt in harmful if prompt.prompt_id not in routes]
            answers.enter(Phase.ROUTING, f"{number}/{len(contexts)}")
            outcomes = answers.outcomes([answers.request(prompt, context) for prompt in left])
            pairs = zip(left, outcomes, strict=True)
            routes |= {prompt.prompt_id: context for prompt, answer in pairs if answer.verdict.label is Label.SAFE}
    if benign_context:
        routes |= {prompt.prompt_id: benign_context for prompt in prompts if prompt.kind == "benign"}
    return Routing(tuple(p for p in prompts if p.kind == "benign" or p.prompt_id in routes), routes)


def kept_answers(runner: Runner, prompts: Sequence[Prompt], routes: Routes) -> KeptAnswers:
    """Return the prompts whose answer under their context is kept, each with the answer."""
    runner.enter(Phase.ANSWERS)
    rollouts = runner.rollouts([Request(prompt, routes.get(prompt.prompt_id)) for prompt in prompts])
    kept = []
    for prompt, rollout, given in zip(prompts, rollouts, runner.verdicts(rollouts, prompts), strict=True):
        verdict = runner.rule.counted(given, Request(prompt, routes.get(prompt.prompt_id)), rollout.recites)
        is_broken = verdict.kind == "degenerate" and "degenerate" not in runner.rule.count_kinds
        if verdict.label is Label.UNSCORED or is_broken or rollout.finish_reason != "stop":
            continue
        is_compliant = verdict.p_refusal is not None and verdict.p_refusal < REFUSAL_THRESHOLD
        if verdict.label is Label.SAFE if prompt.kind == "harmful" else is_compliant:
            kept.append((prompt, rollout))
    return kept


def own_rows(chat: Chat, kept: KeptAnswers) -> dict[str, TrainingRow]:
    """Return by prompt id the rows of the model's own answers, with the very ids that it generated."""
    return {
        prompt.prompt_id: make_row(chat, prompt, {}, answer.completion_ids, answer.finish_reason, answer.completion)
        for prompt, answer in kept
    }


def turn_end_id(chat: Chat, tokenizer: Any) -> int:
    """Return the token that ends what a student learns from a teacher: what its chat template writes after an answer.

    A template that writes no answers leaves the tokenizer's end token. TrainingError if there is neither.
    """
    ends = [*chat.end_ids, tokenizer.eos_token_id]
    if ends[0] is None:
        raise TrainingError(
            "neither the chat template nor the tokenizer of the model says what ends an answer, which a teacher's "
            "answers have to; name an eos_token in its tokenizer_config.json, or train with another --method."
        )
    return int(ends[0])


def teacher_rows(chat: Chat, tokenizer: Any, kept: KeptAnswers, max_positions: int | None) -> dict[str, TrainingRow]:
    """Return by prompt id the rows of another model's answers, in the student's tokens, marks and end token."""
    rows, end = {}, turn_end_id(chat, tokenizer)
    for prompt, answer in kept:
        parts = split_answer(answer.completion, answer.opens_thinking)
        # The answer as it is written: without a thought nothing is stripped.
        shown = (parts.answer or "") if parts.has_thought else answer.completion
        ids = chat.completion_ids(shown, parts.thought)
        row = make_row(chat, prompt, {}, (*ids, end), "stop", chat.decode(ids))
        num_tokens = len(row.student_ids) + len(row.completion_ids)
        if max_positions is not None and num_tokens > max_positions:
            raise TrainingError(
                f"a teacher's answer has {num_tokens} of the model's tokens with its prompt, but the model holds "
                f"{max_positions}; lower --max-tokens. Nothing is cut off silently."
            )
        rows[prompt.prompt_id] = row
    return rows
