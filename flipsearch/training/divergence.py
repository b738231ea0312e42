"""The losses of training per completion token, exact, without full logits: divergences and the likelihood.

Every divergence has its direction in its name; p is the teacher, q the student:

    forward_kl      KL(p || q)    mass-covering      (Eq. 2 of arXiv 2605.15239 as printed)
    reverse_kl      KL(q || p)    mode-seeking
    jensen_shannon  m KL(p || M) + (1 - m) KL(q || M),  M = m p + (1 - m) q

The paper's runs minimise 0.5 forward + 0.5 reverse, which is what `Divergence()` is. TRL's `alpha` and GKD's `beta` are
the `mixture` m of a Jensen-Shannon divergence; NeMo-RL's `mixed` weight multiplies the forward part. Equal logits on
both sides give a loss and a gradient of exactly 0: AdamW would make a step of rounding noise.

Head and loss are computed together for a few positions at a time. The gradient of a loss in the student's logits has a
closed form, so a chunk's logits are dropped as soon as its gradients are added up: memory is that of one chunk, and
nothing is computed twice. Knows no model.
"""

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of hidden states."""

    weight: Tensor
    """(V, H) output embeddings."""
    bias: Tensor | None = None
    """(V,)"""
    transform: Callable[[Tensor], Tensor] | None = None
    """What becomes of their product (n, V), such as a scale or a cap; None: it is the logits."""

    def product(self, hidden: Tensor) -> Tensor:
        """Return hidden states (n, H) times the output embeddings, before `transform`."""
        return linear(hidden, self.weight, self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, V) of hidden states (n, H)."""
        product = self.product(hidden)
        return self.transform(product) if self.transform else product


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
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    weights: Tensor,
    spec: Divergence,
) -> tuple[Tensor, PerToken]:
    """Return the weighted sum of the divergence over N completion tokens, with gradient to the student, and per token.

    Hidden states (N, H) are those that predict the N tokens; `weights` (N,). For N = 0 the sum is a zero that is
    connected to the graph.
    """
    student = (student_hidden, student_head.weight, student_head.bias, student_head)
    apply: Any = _ChunkedDivergence.apply
    loss, *per_token = apply(*student, teacher_hidden, teacher_head, weights, spec)
    return loss, PerToken(*per_token)


def nll_sum(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> tuple[Tensor, PerToken]:
    """Return the weighted sum of the negative log-likelihood of `targets` (N,), with gradient, and per token."""
    loss, *per_token = _ChunkedNll.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head, targets, weights
    )
    return loss, PerToken(*per_token)


def position_divergences(
    teacher_hidden: Tensor, teacher_head: Head, student_hidden: Tensor, student_head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(p || q), KL(q || p) and the likeliest token of p at N positions, each (N,), without gradient.

    Hidden states (N, H) are those that predict the N tokens.
    """
    parts = []
    for part in _chunks(len(teacher_hidden), len(teacher_head.weight)):
        log_p = _log_softmax(teacher_head.logits(teacher_hidden[part]), 1.0)  # (n, V)
        log_q = _log_softmax(student_head.logits(student_hidden[part]), 1.0)  # (n, V)
        ratio = log_p - log_q
        parts.append((vecdot(log_p.exp(), ratio), -vecdot(log_q.exp(), ratio), log_p.argmax(-1)))
    forward, reverse, likeliest = (torch.cat(column) for column in zip(*parts, strict=True))
    return forward, reverse, likeliest


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
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher: Tensor,
        teacher_head: Head,
        weights: Tensor,
        spec: Divergence,
    ) -> tuple[Tensor, ...]:
        sums = _Sums(ctx, hidden, head)
        for part in _chunks(len(hidden), len(weight)):
            log_p = _log_softmax(teacher_head.logits(teacher[part]), spec.temperature)  # (n, V)
            log_q = sums.log_probabilities(part, spec.temperature)  # (n, V)
            sums.add(part, weights[part], *_per_token_and_gradient(log_p, log_q, spec))
        ctx.num_others = 5
        return sums.finish(ctx)


class _ChunkedNll(_Chunked):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        sums = _Sums(ctx, hidden, head)
        for part in _chunks(len(hidden), len(weight)):
            log_q = sums.log_probabilities(part, 1.0)  # (n, V)
            gradient, target = log_q.exp(), targets[part, None]
            entropy = -(gradient * log_q).sum(-1)
            gradient.scatter_add_(-1, target, gradient.new_full(target.shape, -1.0))  # q - one-hot
            per_token = PerToken(-log_q.gather(-1, target)[:, 0], torch.ones_like(entropy), entropy)
            sums.add(part, weights[part], per_token, gradient)
        ctx.num_others = 3
        return sums.finish(ctx)


class _Sums:
    """What the chunks add up to: the value, its gradients, and the values per token."""

    def __init__(self, ctx: Any, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head = hidden, head
        self.value = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.to_hidden = torch.zeros_like(hidden)
        # Added up in float32: a bfloat16 sum over thousands of chunks would lose the small ones.
        self.to_weight, self.to_bias = (
            torch.zeros_like(part, dtype=torch.float32) if part is not None and needed else None
            for part, needed in zip((head.weight, head.bias), ctx.needs_input_grad[1:3], strict=True)
        )
        self.per_token = hidden.new_zeros((3, len(hidden)), dtype=torch.float32)
        self._product: Tensor | None = None
        self._logits: Tensor | None = None

    def log_probabilities(self, part: slice, temperature: float) -> Tensor:
        """Return the student's log-probabilities (n, V) in the chunk `part`."""
        if self.head.transform is None:
            return _log_softmax(self.head.product(self.hidden[part]), temperature)
        self._product = self.head.product(self.hidden[part]).requires_grad_()
        with torch.enable_grad():
            self._logits = self.head.transform(self._product).float()
        return _log_softmax(self._logits.detach().clone(), temperature)

    def add(self, part: slice, weights: Tensor, per_token: PerToken, gradient: Tensor) -> None:
        """Add the chunk `part`; `gradient` (n, V) is that of its tokens' losses in the student's logits."""
        self.per_token[:, part] = torch.stack(per_token)
        self.value += (per_token.divergence * weights).sum(dtype=torch.float64)
        gradient = gradient.mul_(weights[:, None])
        if self._logits is not None:
            assert self._product is not None
            (gradient,) = torch.autograd.grad(self._logits, self._product, gradient)
            self._product = self._logits = None
        weight = self.head.weight
        gradient = gradient.to(weight.dtype)
        self.to_hidden[part] = gradient @ weight
        if self.to_bias is not None:
            self.to_bias += gradient.sum(0, dtype=torch.float32)
        if self.to_weight is not None:
            if weight.dtype == torch.float32:
                self.to_weight.addmm_(gradient.T, self.hidden[part])
            else:
                self.to_weight += gradient.T @ self.hidden[part]

    def finish(self, ctx: Any) -> tuple[Tensor, ...]:
        sums = (self.to_weight, self.to_bias)
        ctx.gradients = (self.to_hidden, *(None if part is None else part.to(self.head.weight.dtype) for part in sums))
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
        log_m = torch.where(log_p == log_q, log_p, log_m)  # exactly, where both agree
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
        gradient.sub_(p.mul_(spec.forward_weight))  # rounded as the other side is: the same number where both agree
    return value, entropy, gradient.div_(spec.temperature)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities (n, V) in float32; float32 `logits` are overwritten."""
    return logits.float().div_(temperature).log_softmax(-1)


def _chunks(num_positions: int, num_vocab: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * num_vocab))
    return (slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size))
