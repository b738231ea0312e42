"""Supervised fine-tuning (SFT) on answers kept before training: the off-policy baseline methods of OPSA's paper.

Paper: arXiv 2605.15239, Eq. 1. Each prompt is answered under its context, and the judge keeps the good answers
(rows.py). The model is trained on the kept answers without the context that they were written under. The loss is the
negative log-likelihood of their tokens. Prompts, steps, schedule and normalisation by tokens are those of OPSA, so that
methods are compared under matched data.

Modes: sft-self learns the model's own answers (ThinkSafe, arXiv 2601.23143), sft-teacher those of another model
(SafeChain, arXiv 2502.12025).

    flipsearch train --context best.txt --method sft-self
    flipsearch train --context best.txt --method sft-teacher --teacher MODEL
"""

from collections.abc import Sequence

from flipsearch.config import TrainConfig
from flipsearch.core.records import Prompt
from flipsearch.training.divergence import nll_sum
from flipsearch.training.rows import TrainingRow
from flipsearch.training.trainer import CompletionTrainer, TokenLoss, TrainingBatch, TrainingJob


def make_trainer(job: TrainingJob, config: TrainConfig) -> "SftTrainer":
    """Return the trainer of a job; no setting is of this method alone."""
    return SftTrainer(job)


class SftTrainer(CompletionTrainer):
    """Minimises the negative log-likelihood of the job's kept answers."""

    def rows(self, prompts: Sequence[Prompt]) -> list[TrainingRow]:
        """Return the kept answers to the prompts."""
        return [self.job.answers[prompt.prompt_id] for prompt in prompts]

    def loss_of(self, batch: TrainingBatch) -> TokenLoss:
        """Return the negative log-likelihood of the batch's completion tokens."""
        return lambda hidden, head: nll_sum(hidden, head, batch.targets, batch.weights)
