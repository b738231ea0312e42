"""The same completion under two prompts: what the student wrote, as the student and as the teacher read it.

    student:  [prompt              | completion]      hidden state at prompt end - 1 + t predicts completion token t
    teacher:  [context and prompt  | completion]      the same ids, aligned by their offset in the completion

Prompt ids and completion ids stay apart until `lay_out`; a completion is never decoded and encoded again. Masks come
from lengths. Nothing is ever cut: `check_room` refuses what would not fit.

What the off-policy rivals learn from: answers written before training under the context, those that the judge keeps.

    sft-self      the model's own answers           ThinkSafe, arXiv 2601.23143
    sft-teacher   an external model's answers       SafeChain, arXiv 2502.12025

A harmful prompt's answer is kept if it is judged safe, a benign one's if it does not refuse; both only if they ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flipsearch.backends.chat import Chat
from flipsearch.core.errors import TrainingError
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, FinishReason, Label, Prompt, Request, Rollout, Verdict
from flipsearch.core.samples import REFUSAL_THRESHOLD
from flipsearch.measuring.runner import Runner

Ids = Sequence[int]
Routes = Mapping[str, Context]
"""Prompt id -> the context under which the teacher reads it; a prompt without one is read as the student reads it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One completion under both prompts."""

    prompt: Prompt
    """Its request."""
    student_ids: Ids
    """Prompt ids without a context."""
    teacher_ids: Ids
    """Prompt ids under the context of its label."""
    completion_ids: Ids
    """What is learnt from, the first end token included, nothing after it."""
    finish_reason: FinishReason
    """"length" is a completion that was cut: it has no end token, and all of its tokens count."""
    completion: str = ""
    """Its text, for the log."""


class Layout(NamedTuple):
    """Rows as a padded batch, and where in it the completions are."""

    ids: Tensor
    """(B, T) prompt, completion, then padding."""
    mask: Tensor
    """(B, T) 1 for real tokens."""
    predicts: Tensor
    """(N,) places in the flattened (B * T) whose hidden states predict the completion tokens, row by row."""

    def to(self, device: torch.device) -> "Layout":
        """Return it on a device."""
        return Layout(*(tensor.to(device) for tensor in self))


def make_row(
    chat: Chat, prompt: Prompt, routes: Routes, completion_ids: Ids, reason: FinishReason, completion: str = ""
) -> Row:
    """Return the row of a completion, with its prompt encoded for both sides by the same chat template and switch."""
    student, teacher = (list(chat.encode(Request(prompt, c)).prompt_ids) for c in (None, routes.get(prompt.prompt_id)))
    if student[-1] != teacher[-1]:
        raise TrainingError("the chat template ends differently under the context; both sides would not align.")
    return Row(prompt, student, teacher, tuple(completion_ids), reason, completion)


def check_room(
    chat: Chat, prompts: Sequence[Prompt], routes: Routes, max_tokens: int, max_positions: int | None
) -> int:
    """Return the longest prompt under its context, in tokens; TrainingError if a completion would not fit behind it."""
    lengths = [len(chat.encode(Request(prompt, routes.get(prompt.prompt_id))).prompt_ids) for prompt in prompts]
    longest = max(lengths, default=0)
    if max_positions is not None and longest + max_tokens > max_positions:
        raise TrainingError(
            f"a prompt has {longest} tokens with its context and max_tokens is {max_tokens}, but the model holds "
            f"{max_positions}; lower --max-tokens or take a shorter context. Nothing is cut off silently."
        )
    return longest


def lay_out(prompts: Sequence[Ids], completions: Sequence[Ids]) -> Layout:
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
    return Layout(ids, mask.long(), torch.tensor(predicts, dtype=torch.long))


OPEN_THINKING = "<think>\n"


Answers = Sequence[tuple[Prompt, Rollout]]


def kept_answers(runner: Runner, prompts: Sequence[Prompt], routes: Mapping[str, Context]) -> Answers:
    """Return each prompt with the answer to it under its context, for the answers that are kept."""
    runner.enter(Phase.ANSWERS)
    rollouts = runner.rollouts([Request(prompt, routes.get(prompt.prompt_id)) for prompt in prompts])
    verdicts = runner.verdicts(rollouts, prompts)
    found = zip(prompts, rollouts, verdicts, strict=True)
    return [(prompt, one) for prompt, one, verdict in found if _is_kept(prompt, one, verdict)]


def own_rows(chat: Chat, kept: Answers) -> dict[str, Row]:
    """Return by prompt id the rows of the model's own answers: the very ids that it wrote."""
    return {
        prompt.prompt_id: make_row(chat, prompt, {}, one.completion_ids, one.finish_reason, one.completion)
        for prompt, one in kept
    }


def end_id(tokenizer: Any) -> int:
    """Return the token that ends what a student learns from a teacher; TrainingError if its tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            "the tokenizer of the model has no eos_token to end a teacher's answers with; name one in its "
            "tokenizer_config.json, or train with another --method."
        )
    return int(tokenizer.eos_token_id)


def teacher_rows(chat: Chat, tokenizer: Any, kept: Answers, max_positions: int | None) -> dict[str, Row]:
    """Return by prompt id the rows of another model's answers, in the student's tokens and with its end token.

    Raises TrainingError for a row that is longer than the student's `max_positions`; None: it has no limit.
    """
    rows = {}
    for prompt, one in kept:
        text = _as_student_opens(one, chat.opens_thinking)
        row = make_row(chat, prompt, {}, (*chat.completion_ids(text), end_id(tokenizer)), "stop", text)
        num_tokens = len(row.student_ids) + len(row.completion_ids)
        if max_positions is not None and num_tokens > max_positions:
            raise TrainingError(
                f"a teacher's answer has {num_tokens} of the model's tokens with its prompt, but the model holds "
                f"{max_positions}; lower --max-tokens. Nothing is cut off silently."
            )
        rows[prompt.prompt_id] = row
    return rows


def _as_student_opens(rollout: Rollout, student_opens: bool) -> str:
    """The answer's text with its think block opened by the prompt or by itself, as the student's template has it."""
    if rollout.opens_thinking and not student_opens:
        return OPEN_THINKING + rollout.completion
    return rollout.completion.removeprefix(OPEN_THINKING) if student_opens else rollout.completion


def _is_kept(prompt: Prompt, rollout: Rollout, verdict: Verdict) -> bool:
    if verdict.label is Label.UNSCORED or rollout.finish_reason != "stop":
        return False
    if prompt.kind == "harmful":
        return verdict.label is Label.SAFE
    return verdict.p_refusal is not None and verdict.p_refusal < REFUSAL_THRESHOLD
