"""Rollouts made out of requests: every backend fills in the ids the same way."""

from collections.abc import Sequence

from flipsearch.backends.chat import EncodedPrompt
from flipsearch.core.records import Request, Rollout, Sampling


def completed(
    request: Request,
    model_id: str,
    sampling: Sampling,
    prompt: EncodedPrompt,
    *,
    completion: str,
    completion_ids: Sequence[int],
    stopped: bool,
) -> Rollout:
    """Return the rollout of a request that the model completed; `stopped` by itself or cut at max_tokens."""
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        context_id=request.context.context_id if request.context else None,
        model_id=model_id,
        sampling=sampling,
        sample_index=request.sample_index,
        completion=completion,
        completion_ids=tuple(completion_ids),
        num_prompt_tokens=len(prompt.prompt_ids),
        finish_reason="stop" if stopped else "length",
        opens_thinking=prompt.opens_thinking,
        prefill=request.prefill,
    )


def failed(request: Request, model_id: str, sampling: Sampling, reason: str) -> Rollout:
    """Return the rollout of a request that could not be completed."""
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        context_id=request.context.context_id if request.context else None,
        model_id=model_id,
        sampling=sampling,
        sample_index=request.sample_index,
        completion="",
        completion_ids=(),
        num_prompt_tokens=0,
        finish_reason="error",
        error=reason,
        prefill=request.prefill,
    )
