"""The losses of training per completion token, exact, without full logits: divergences and the likelihood.

Every divergence has its direction in its name; p is the teacher, q the student:

    forward_kl      KL(p || q)    mass-covering      (Eq. 2 of arXiv 2605.15239 as printed)
    reverse_kl      KL(q || p)    mode-seeking
    jensen_shannon  m KL(p || M) + (1 - m) KL(q || M),  M = m p + (1 - m) q

The paper's runs minimise 0.5 forward + 0.5 reverse, which is what `Divergence()` is. TRL's `alpha` and GKD's `beta` are
the `mixture` m of a Jensen-Shannon divergence; NeMo-RL's `mixed` weight multiplies the forward part.

Head and loss are computed together for a few positions at a time. The gradient of a loss in the student's logits has a
closed form, so a chunk's logits are dropped as soon as its gradients are added up: memory is that of one chunk, and
nothing is computed twice. Knows no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import linear

Tail = Literal["renormalised", "bucket"]
CHUNK_BYTES = 36 * 2**20
"""Bytes of one float32 buffer of logits; about five are held at once. Above 32 MiB, so that glibc gives each back when
it is freed: smaller ones stay in its heap, and peak memory grows by up to half."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence is minimised, on which support. The defaults are the paper's, on the full vocabulary."""

    forward_weight: float = 0.5
    reverse_weight: float = 0.5
    jensen_shannon_weight: float = 0.0
    mixture: float = 0.5
    """Share of the teacher in the Jensen-Shannon mixture."""
    top_k: int = 0
    """Compare on the teacher's `top_k` likeliest tokens; 0 is the full vocabulary."""
    tail: Tail = "renormalised"
    """With `top_k`: renormalise both sides over these tokens, or keep the rest of the mass as one more "token"."""
    temperature: float = 1.0
    """Both logits are divided by it."""
    clip: float | None = None
    """A token's divergence counts at most this much, and then has no gradient."""


class PerToken(NamedTuple):
    """Values per completion token, each (N,) and without gradient."""

    divergence: Tensor
    """The token's loss, after `clip`, before weights."""
    teacher_mass: Tensor
    """Teacher probability on the support; 1 on the full vocabulary."""
    entropy: Tensor
    """Of the student on the support, in nats."""


def divergence_sum(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
    spec: Divergence,
) -> tuple[Tensor, PerToken]:
    """Return the weighted sum of the divergence over N completion tokens, with gradient to the student, and per token.

    Hidden states (N, H) are those that predict the N tokens; heads (V, H) are the output embeddings; `weights` (N,).
    For N = 0 the sum is a zero that is connected to the graph.
    """
    loss, *per_token = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, student_head, teacher_hidden, teacher_head, weights, spec
    )
    return loss, PerToken(*per_token)


def nll_sum(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, PerToken]:
    """Return the weighted sum of the negative log-likelihood of `targets` (N,), with gradient, and per token."""
    loss, *per_token = _ChunkedNll.apply(hidden, head, targets, weights)  # type: ignore[no-untyped-call]
    return loss, PerToken(*per_token)


class _Chunked(torch.autograd.Function):
    """A sum over positions whose gradients are known when its value is: backward only multiplies."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # In place: the head's gradient is as large as the head, and a backward through a sum happens once.
        gradients = [None if gradient is None else gradient.mul_(grad) for gradient in ctx.gradients]
        ctx.gradients = None
        return (*gradients, *(None for _ in range(ctx.num_others)))


class _ChunkedDivergence(_Chunked):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, weights: Tensor, spec: Divergence
    ) -> tuple[Tensor, ...]:
        sums = _Sums(hidden, head, ctx.needs_input_grad[1])
        for part in _chunks(len(hidden), len(head)):
            log_p = _log_softmax(teacher[part], teacher_head, spec.temperature)  # (n, V)
            log_q = _log_softmax(hidden[part], head, spec.temperature)  # (n, V)
            sums.add(part, weights[part], *_per_token_and_gradient(log_p, log_q, spec))
        ctx.num_others = 4
        return sums.finish(ctx)


class _ChunkedNll(_Chunked):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        sums = _Sums(hidden, head, ctx.needs_input_grad[1])
        for part in _chunks(len(hidden), len(head)):
            log_q = _log_softmax(hidden[part], head, 1.0)  # (n, V)
            gradient, target = log_q.exp(), targets[part, None]
            entropy = -(gradient * log_q).sum(-1)
            gradient.scatter_add_(-1, target, gradient.new_full(target.shape, -1.0))  # q - one-hot
            per_token = PerToken(-log_q.gather(-1, target)[:, 0], torch.ones_like(entropy), entropy)
            sums.add(part, weights[part], per_token, gradient)
        ctx.num_others = 2
        return sums.finish(ctx)


class _Sums:
    """What the chunks add up to: the value, its gradients, and the values per token."""

    def __init__(self, hidden: Tensor, head: Tensor, trains_head: bool) -> None:
        self.hidden, self.head = hidden, head
        self.value = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.to_hidden = torch.zeros_like(hidden)
        # Added up in float32: a bfloat16 sum over thousands of chunks would lose the small ones.
        self.to_head = torch.zeros_like(head, dtype=torch.float32) if trains_head else None
        self.per_token = hidden.new_zeros((3, len(hidden)), dtype=torch.float32)

    def add(self, part: slice, weights: Tensor, per_token: PerToken, gradient: Tensor) -> None:
        """Add the chunk `part`; `gradient` (n, V) is that of its tokens' losses in the student's logits."""
        self.per_token[:, part] = torch.stack(per_token)
        self.value += (per_token.divergence * weights).sum(dtype=torch.float64)
        gradient = gradient.mul_(weights[:, None]).to(self.head.dtype)
        self.to_hidden[part] = gradient @ self.head
        if self.to_head is not None:
            if self.head.dtype == torch.float32:
                self.to_head.addmm_(gradient.T, self.hidden[part])
            else:
                self.to_head += gradient.T @ self.hidden[part]

    def finish(self, ctx: Any) -> tuple[Tensor, ...]:
        to_head = None if self.to_head is None else self.to_head.to(self.head.dtype)
        ctx.gradients = self.to_hidden, to_head
        per_token = tuple(self.per_token.unbind())
        ctx.mark_non_differentiable(*per_token)
        return self.value.float(), *per_token


def _per_token_and_gradient(log_p: Tensor, log_q: Tensor, spec: Divergence) -> tuple[PerToken, Tensor]:
    """Return the values per token and the gradient (n, V) in the student's logits, on the support of `spec`."""
    if not spec.top_k:
        value, entropy, gradient = _value_and_gradient(log_p, log_q, spec)
        mass = torch.ones_like(value)
    else:
        value, mass, entropy, gradient = _on_likeliest(log_p, log_q, spec)
    if spec.clip is not None:
        gradient[value > spec.clip] = 0
        value = value.clamp(max=spec.clip)
    return PerToken(value, mass, entropy), gradient


def _on_likeliest(log_p: Tensor, log_q: Tensor, spec: Divergence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return divergence, teacher mass, entropy and gradient (n, V) on the teacher's `top_k` likeliest tokens."""
    log_p_top, index = log_p.topk(min(spec.top_k, log_p.shape[-1] - 1), dim=-1)  # (n, K)
    mass, log_q_top = log_p_top.exp().sum(-1), log_q.gather(-1, index)
    if spec.tail == "renormalised":
        log_p_top, log_q_top = log_p_top.log_softmax(-1), log_q_top.log_softmax(-1)
        value, entropy, gradient = _value_and_gradient(log_p_top, log_q_top, spec)
        everywhere = torch.zeros_like(log_q)
    else:
        # Summed from its own tokens: one minus the rest would be rounding noise where the model is sure.
        rest_p, rest_q = (x.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True) for x in (log_p, log_q))
        log_p_top = torch.cat([log_p_top, rest_p], dim=-1)  # (n, K + 1)
        log_q_top = torch.cat([log_q_top, rest_q], dim=-1)  # (n, K + 1)
        value, entropy, gradient = _value_and_gradient(log_p_top, log_q_top, spec)
        # What lowers the bucket lowers its tokens in proportion to their share of it.
        everywhere = (log_q - rest_q).exp().mul_(gradient[:, -1:])
        gradient = gradient[:, :-1]
    return value, mass, entropy, everywhere.scatter_(-1, index, gradient)


def _value_and_gradient(log_p: Tensor, log_q: Tensor, spec: Divergence) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence D (n,), the student's entropy (n,) and the gradient (n, V) in its logits.

    With the derivative g = dD/dq the gradient in the logits is q (g - sum q g) / temperature. Both inputs are
    overwritten: a buffer is as large as the chunk.
    """
    q = log_q.exp()
    entropy = -vecdot(q, log_q)
    value, derivative = torch.zeros_like(entropy), None
    if spec.jensen_shannon_weight:
        shares = torch.tensor([spec.mixture, 1 - spec.mixture], dtype=log_p.dtype, device=log_p.device).log()
        log_m = torch.logaddexp(log_p + shares[0], log_q + shares[1])
        derivative = (log_q - log_m).mul_(spec.jensen_shannon_weight * (1 - spec.mixture))
        part = log_m.neg_().add_(log_p)  # log p - log m
        value += spec.jensen_shannon_weight * spec.mixture * vecdot(log_p.exp(), part)
        del log_m, part
    if spec.forward_weight or spec.reverse_weight:
        ratio = log_q.sub_(log_p)  # log q - log p
        p = log_p.exp_()
        if spec.forward_weight:
            value -= spec.forward_weight * vecdot(p, ratio)
        if spec.reverse_weight:
            ratio.mul_(spec.reverse_weight)
            derivative = ratio if derivative is None else derivative.add_(ratio)
    derivative = torch.zeros_like(q) if derivative is None else derivative
    mean = vecdot(q, derivative)
    value += mean
    gradient = derivative.sub_(mean[:, None] - spec.forward_weight).mul_(q)
    if spec.forward_weight:
        gradient.sub_(p, alpha=spec.forward_weight)
    return value, entropy, gradient.div_(spec.temperature)


def _log_softmax(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = linear(hidden, head).float()
    return logits.div_(temperature).log_softmax(-1)


def _chunks(num_positions: int, num_vocab: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * num_vocab))
    return (slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size))
