"""Choosing the next token: the likeliest one, or a draw that depends on nothing but its own request.

Every request has its own stream of uniform numbers, one a token, drawn before decoding starts. Token number t is the
inverse of the cumulative distribution at the t-th number, so a completion does not depend on its neighbours, the batch
size or the device's own generator.

B rows in the batch now, N rows at its start, C completion tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch

from flipsearch.records import Request, Sampling, content_id

Choose = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(logits (B, V), rows (B,) as numbered at the start, step) -> tokens (B,)."""


def chooser(requests: Sequence[Request], sampling: Sampling, device: torch.device, first: int = 0) -> Choose:
    """Return the rule that picks next tokens for a batch of requests, from place `first` of their completions on."""
    if sampling.temperature == 0:
        return lambda logits, rows, step: logits.argmax(-1)
    uniforms = torch.stack([_stream(request, sampling) for request in requests]).to(device)  # (N, C)

    def draw(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        # Cumulative sums over a large vocabulary need more than float32.
        probabilities = keep_likely(logits.double() / sampling.temperature, sampling.top_k, sampling.top_p).softmax(-1)
        return inverse_cdf(probabilities, uniforms[rows, first + step])

    return draw


def keep_likely(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Return `logits` (B, V) with -inf outside the `top_k` likeliest and, of those, outside the nucleus `top_p`.

    The nucleus is the smallest set of likeliest tokens that holds at least `top_p` of the mass (Holtzman et al. 2020,
    arXiv 1904.09751); `top_k` comes first, as in transformers.
    """
    if 0 < top_k < logits.shape[-1]:
        weakest = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < weakest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)  # (B, V)
        mass_before[:, 0] = 0  # the likeliest token is always kept
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def inverse_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return for each row of `probabilities` (B, V) the token whose slice of [0, 1) holds its uniform number (B,)."""
    cumulative = probabilities.cumsum(-1)
    # Scaled, so that rounding in the sum cannot leave a number beyond the last token.
    target = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    last = probabilities.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)
    return torch.minimum(tokens, last)


def stream_seed(request: Request, sampling: Sampling) -> int:
    """Return the 64-bit seed of a request's own draws."""
    context_id = request.context.context_id if request.context else None
    key = content_id("draws", sampling.seed, request.prompt.prompt_id, context_id, request.sample_index)
    return int(key, 16)


def _stream(request: Request, sampling: Sampling) -> torch.Tensor:
    generator = torch.Generator().manual_seed(stream_seed(request, sampling))
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)
