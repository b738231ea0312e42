"""A completion behind two prompts: as the student continues it, and as the teacher scores it.

    student:  [prompt              | completion]      the hidden state at prompt end - 1 + t predicts completion token t
    teacher:  [context and prompt  | completion]      the same ids, aligned by their offset in the completion

Prompt ids and completion ids stay apart until `lay_out`; a completion is never decoded and encoded again. Masks come
from lengths. Nothing is ever cut off: `check_fits` refuses what is too long. Knows no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flipsearch.backends.chat import Chat
from flipsearch.core.errors import TrainingError
from flipsearch.core.records import Context, FinishReason, Prompt, Request

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
    """Return the row of a completion, its prompt encoded for both sides by the same chat template and switch.

    Raises TrainingError for a template whose end depends on the context: the sides would not align.
    """
    student, teacher = (list(chat.encode(Request(prompt, c)).prompt_ids) for c in (None, routes.get(prompt.prompt_id)))
    if student[-1] != teacher[-1]:
        raise TrainingError("the chat template ends differently under the context; both sides would not align.")
    return TrainingRow(prompt, student, teacher, tuple(completion_ids), reason, completion)


def check_fits(
    chat: Chat, prompts: Sequence[Prompt], routes: Routes, max_tokens: int, max_positions: int | None
) -> int:
    """Return the longest prompt under its context, in tokens.

    Raises TrainingError if a completion of `max_tokens` does not fit behind it into the model's `max_positions`; None
    is no limit.
    """
    lengths = [len(chat.encode(Request(prompt, routes.get(prompt.prompt_id))).prompt_ids) for prompt in prompts]
    longest = max(lengths, default=0)
    if max_positions is not None and longest + max_tokens > max_positions:
        raise TrainingError(
            f"a prompt has {longest} tokens with its context and max_tokens is {max_tokens}, but the model holds "
            f"{max_positions}; lower --max-tokens or take a shorter context. Nothing is cut off silently."
        )
    return longest


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
