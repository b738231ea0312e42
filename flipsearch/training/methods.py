"""The training methods: where the completions of a step come from, and what their tokens cost.

On-Policy Self-Alignment (OPSA): the model learns from its own rollouts what it would do under a safety context. Paper:
arXiv 2605.15239, Eq. 2. In every step the student samples a completion of each prompt without any context, as it
will be used. The frozen teacher, the student's own initial copy, scores the same completion ids under the context of
the prompt's label: the safety context for harmful prompts, the benign context, if there is one, for benign ones. At
every completion token the divergence between the two next-token distributions is taken (divergence.py). Its mean over
the completion tokens of the step, those within the horizon, is minimised through the student.

Modes: forward, reverse and Jensen-Shannon divergence in any weights; --loss-mixture and --loss-temperature as other
trainers have them; --support K compares on the teacher's K likeliest tokens; --clip bounds a token's divergence;
--horizon counts only the first tokens; --lora trains adapters, and the teacher is the model without them;
--rollouts vllm samples from an engine beside the student that takes over its weights before every step.

Supervised fine-tuning (SFT) on answers kept before training (Eq. 1), the off-policy baseline methods of that paper:
sft-self learns the model's own answers (ThinkSafe, arXiv 2601.23143), sft-teacher those of another model (SafeChain,
arXiv 2502.12025). Each prompt is answered under its context, and the judge keeps the good answers (rows.py). The model
is trained on those without the context that they were written under: the negative log-likelihood of their tokens.
Prompts, steps, schedule and normalisation by tokens are those of OPSA, so that methods are compared under matched data.

    flipsearch train --context best.txt --method opsa
    flipsearch train --context best.txt --method sft-self
    flipsearch train --context best.txt --method sft-teacher --teacher MODEL
"""

from collections.abc import Sequence

import torch

from flipsearch.backends.chat import Chat, Thinking
from flipsearch.backends.colocated import ColocatedVllm
from flipsearch.backends.models import locate, model_source
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError
from flipsearch.core.records import Prompt, Request, Sampling
from flipsearch.training.divergence import Divergence, divergence_sum, nll_sum
from flipsearch.training.model import completion_hidden, unwrap
from flipsearch.training.processes import whole_weights
from flipsearch.training.rows import TrainingRow, lay_out, make_row
from flipsearch.training.trainer import CompletionTrainer, TokenLoss, TrainingBatch, TrainingJob


def make_opsa(job: TrainingJob, config: TrainConfig) -> "OpsaTrainer":
    """Return the trainer of a job with the divergence and the sampling of the settings."""
    weights = (config.forward_weight, config.reverse_weight, config.jensen_shannon_weight, config.loss_mixture)
    divergence = Divergence(*weights, config.support, config.tail, config.loss_temperature, config.clip)
    student = None
    if config.rollouts == "vllm":
        chat = Chat(job.tokenizer, config.thinking)
        longest = max(len(chat.encode(Request(prompt)).prompt_ids) for prompt in job.prompts)
        student = ColocatedVllm(
            job.running,
            locate(model_source(config.model)).folder,
            job.tokenizer,
            thinking=config.thinking,
            max_model_len=longest + config.sampling().longest,
            adapted=job.model if config.lora else None,
            dtype=torch.bfloat16 if job.arguments.bf16 else None,  # FSDP rounds what it gathers
        )
    return OpsaTrainer(job, config.sampling(), divergence, config.horizon, config.thinking, student)


class OpsaTrainer(CompletionTrainer):
    """Samples completions from the student and minimises their divergence from the teacher."""

    def __init__(
        self,
        job: TrainingJob,
        sampling: Sampling,
        divergence: Divergence,
        horizon: int | None = None,
        thinking: Thinking = "auto",
        student: ColocatedVllm | None = None,
    ) -> None:
        super().__init__(job)
        self.sampling, self.divergence, self.horizon = sampling, divergence, horizon
        self.student = student or TransformersBackend.around(job.running, job.tokenizer, thinking=thinking)

    def close(self) -> None:
        """End the engine, if there is one: a judge may need its memory."""
        if isinstance(self.student, ColocatedVllm):
            self.student.close()

    def rows(self, prompts: Sequence[Prompt]) -> list[TrainingRow]:
        """Return what the student, as it is now, samples for each prompt."""
        step = self.state.global_step
        requests = [Request(prompt, sample_index=step) for prompt in prompts]
        self.job.running.eval()
        with whole_weights(self.model, self.accelerator):
            batches = self.student.generate(requests, self.sampling)
            rollouts = {rollout.prompt_id: rollout for batch in batches for rollout in batch}
        rows = []
        for prompt in prompts:
            rollout = rollouts[prompt.prompt_id]
            if rollout.finish_reason == "error":
                raise TrainingError(f"step {step}: a rollout failed: {rollout.error}.")
            ids, reason, text = rollout.completion_ids, rollout.finish_reason, rollout.completion
            rows.append(make_row(self.student.chat, prompt, self.job.routes, ids, reason, text))
        return rows

    def loss_of(self, batch: TrainingBatch) -> TokenLoss:
        """Return the divergence from the teacher, which scores the same completions behind its own prompts."""
        layout = lay_out([row.teacher_ids for row in batch.rows], [row.completion_ids for row in batch.rows])
        with torch.no_grad(), self.job.as_teacher() as teacher:
            hidden = completion_hidden(teacher, layout.to(self.args.device))  # (N, H)
            head = self.job.head_getter(unwrap(teacher))
        return lambda own, own_head: divergence_sum(own, own_head, hidden, head, batch.weights, self.divergence)


class SftTrainer(CompletionTrainer):
    """Minimises the negative log-likelihood of the job's kept answers."""

    def __init__(self, job: TrainingJob, config: TrainConfig) -> None:
        super().__init__(job)  # no setting is of this method alone

    def rows(self, prompts: Sequence[Prompt]) -> list[TrainingRow]:
        """Return the kept answers to the prompts."""
        return [self.job.answers[prompt.prompt_id] for prompt in prompts]

    def loss_of(self, batch: TrainingBatch) -> TokenLoss:
        """Return the negative log-likelihood of the batch's completion tokens."""
        return lambda hidden, head: nll_sum(hidden, head, batch.targets, batch.weights)
