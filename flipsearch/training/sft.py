"""Supervised fine-tuning on answers written before training: the off-policy rivals (Eq. 1 of arXiv 2605.15239).

Everything but the rows and the loss is OPSA's: the same prompts, steps, schedule and normalisation by tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from flipsearch.core.records import Prompt
from flipsearch.training.divergence import nll_sum
from flipsearch.training.opsa import Batch, LossOf, OpsaTrainer
from flipsearch.training.rows import Layout, Row


class SftTrainer(OpsaTrainer):
    """The negative log-likelihood of fixed answers, without the context that they were written under."""

    def __init__(self, answers: Mapping[str, Row], model: Any, *args: Any, **options: Any) -> None:
        """Take the row of every prompt of the job by prompt id; the rest is as for OpsaTrainer, but for the teacher."""
        super().__init__(model, _no_teacher, *args, **options)
        self.answers = answers

    def rows(self, prompts: Sequence[Prompt]) -> list[Row]:
        """Return the answers to the prompts."""
        return [self.answers[prompt.prompt_id] for prompt in prompts]

    def teacher_layout(self, rows: Sequence[Row]) -> Layout | None:
        """Return None: the answers are the teaching."""
        return None

    def weight(self, position: int) -> float:
        """Return 1: the horizon is OPSA's, and an answer is learnt to its end."""
        return 1.0

    def loss_of(self, batch: Batch) -> LossOf:
        """Return the negative log-likelihood as a function of the student's hidden states (N, H) and head (V, H)."""
        return lambda hidden, head: nll_sum(hidden, head, batch.targets, batch.weights)


def _no_teacher() -> AbstractContextManager[Any]:
    raise AssertionError("supervised fine-tuning asks no teacher")
