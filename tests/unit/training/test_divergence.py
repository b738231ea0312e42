"""Every divergence and its gradient equal a float64 autograd of the textbook form, whatever the chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flipsearch.training import divergence
from flipsearch.training.divergence import Divergence, Head, nll_sum

N, H, V = 23, 16, 101
SPECS = {
    "paper": Divergence(),
    "forward": Divergence(1, 0),
    "reverse": Divergence(0, 1),
    "jensen-shannon": Divergence(0, 0, 1, 0.3),
    "all three": Divergence(0.2, 0.3, 0.5, 0.7),
    "temperature": Divergence(temperature=1.7),
    "top-k": Divergence(top_k=7),
    "top-k, bucket": Divergence(top_k=7, tail="bucket", temperature=0.8),
    "top-k, bucket, jensen-shannon": Divergence(0.1, 0.2, 0.7, top_k=5, tail="bucket"),
    "clip": Divergence(clip=1.8),
    "top-k, bucket, clip": Divergence(top_k=7, tail="bucket", clip=0.5),
}


def divergence_sum(sh: Tensor, sw: Tensor, th: Tensor, tw: Tensor, weights: Tensor, spec: Divergence) -> Any:
    """With output embeddings as heads."""
    return divergence.divergence_sum(sh, Head(sw), th, Head(tw), weights, spec)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor, mixture: float) -> Tensor:
    log_m = (mixture * log_p.exp() + (1 - mixture) * log_q.exp()).log()
    return mixture * kl(log_p, log_m) + (1 - mixture) * kl(log_q, log_m)


def inputs(num: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student hidden, student head, teacher hidden, teacher head, weights."""
    generator = torch.Generator().manual_seed(4)
    hidden, head, teacher, teacher_head = (
        0.6 * torch.randn(*shape, generator=generator) for shape in ((num, H), (V, H), (num, H), (V, H))
    )
    return hidden.requires_grad_(), head.requires_grad_(), teacher, teacher_head, torch.rand(num, generator=generator)


def reference(spec: Divergence, sh: Tensor, sw: Tensor, th: Tensor, tw: Tensor, weights: Tensor) -> tuple[Any, ...]:
    """Loss, values per token, teacher mass, entropy and gradients in float64, with full logits and autograd."""
    sh, sw = (t.detach().double().requires_grad_() for t in (sh, sw))
    log_q = (sh @ sw.T / spec.temperature).log_softmax(-1)
    log_p = (th.double() @ tw.double().T / spec.temperature).log_softmax(-1)
    mass, all_p, all_q = torch.ones(len(sh), dtype=torch.float64), log_p, log_q
    if spec.top_k:
        log_p, index = log_p.topk(spec.top_k)
        log_q, mass = log_q.gather(-1, index), log_p.exp().sum(-1)
        if spec.tail == "renormalised":
            log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        else:
            rest = torch.ones_like(all_p, dtype=torch.bool).scatter(-1, index, False)
            log_p, log_q = (
                torch.cat([top, whole.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)], -1)
                for top, whole in ((log_p, all_p), (log_q, all_q))
            )
    each = spec.forward_weight * kl(log_p, log_q) + spec.reverse_weight * kl(log_q, log_p)
    each = each + spec.jensen_shannon_weight * jensen_shannon(log_p, log_q, spec.mixture)
    each = each.clamp(max=spec.clip) if spec.clip is not None else each
    loss = (each * weights).sum()
    return loss, each, mass, -(log_q.exp() * log_q).sum(-1), *torch.autograd.grad(loss, [sh, sw])


@pytest.mark.parametrize("chunk", [1, 5, N, 1000])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_value_and_gradient_are_those_of_the_textbook(
    spec: Divergence, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "CHUNK_BYTES", chunk * 4 * V)
    given = inputs()
    loss, per_token = divergence_sum(*given, spec)
    (3 * loss).backward()
    expected, each, mass, entropy, to_hidden, to_head = reference(spec, *given)
    if spec.clip is not None:
        assert 0 < sum(each == spec.clip) < N  # some are clipped, and some are not
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.divergence.double(), each.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.teacher_mass.double(), mass, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.entropy.double(), entropy.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given[0].grad.double() / 3, to_hidden, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(given[1].grad.double() / 3, to_head, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gradients_stay_exact_where_both_sides_are_sure(spec: Divergence) -> None:
    """Logits of 20 and more: what is left of the mass is less than float32 can distinguish from none."""
    hidden, head, teacher, teacher_head, weights = inputs()
    given = (hidden.detach() * 8).requires_grad_(), head, teacher * 8, head.detach() + 0.02 * teacher_head, weights
    loss, _ = divergence_sum(*given, spec)
    loss.backward()
    expected, *_, to_hidden, _ = reference(spec, *given)
    assert given[0].grad is not None
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given[0].grad.double(), to_hidden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_equal_distributions_have_no_divergence_and_no_gradient(spec: Divergence) -> None:
    hidden, head, _, _, weights = inputs()
    loss, _ = divergence_sum(hidden, head, hidden.detach(), head.detach(), weights, spec)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-6


@pytest.mark.parametrize("spec", [*SPECS.values(), Divergence(0.3, 0.6, 0.1, 0.3)], ids=[*SPECS, "odd weights"])
def test_equal_logits_have_a_gradient_of_exactly_nothing(spec: Divergence) -> None:
    """AdamW divides by the gradient's own size: rounding noise would be a step."""
    hidden, head, _, _, weights = inputs()
    loss, _ = divergence_sum(hidden, head, hidden.detach().clone(), head.detach().clone(), weights, spec)
    loss.backward()
    assert loss.item() == 0
    for leaf in (hidden, head):
        assert leaf.grad is not None
        assert leaf.grad.count_nonzero() == 0


@pytest.mark.parametrize("chunk", [5, 1000])
def test_a_bias_and_what_follows_it_have_their_part_in_the_gradient(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head with bias, scale and cap, against autograd in float64."""
    monkeypatch.setattr(divergence, "CHUNK_BYTES", chunk * 4 * V)
    sh, sw, th, tw, weights = inputs()
    bias = torch.linspace(-1, 1, V).requires_grad_()

    def capped(product: Tensor) -> Tensor:
        return 2 * (product * 0.7 / 2).tanh()

    targets = torch.arange(N) % V
    student, teacher = Head(sw, bias, capped), Head(tw, bias.detach(), capped)
    loss, _ = divergence.divergence_sum(sh, student, th, teacher, weights, Divergence(temperature=1.7))
    (loss + 0.5 * nll_sum(sh, student, targets, weights)[0]).backward()
    leaves = [t.detach().double().requires_grad_() for t in (sh, sw, bias)]
    logits = capped(leaves[0] @ leaves[1].T + leaves[2])
    log_q = (logits / 1.7).log_softmax(-1)
    log_p = (capped(th.double() @ tw.double().T + bias.detach().double()) / 1.7).log_softmax(-1)
    each = 0.5 * kl(log_p, log_q) + 0.5 * kl(log_q, log_p)
    each = each + 0.5 * torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = torch.autograd.grad((each * weights).sum(), leaves)
    for leaf, gradient in zip((sh, sw, bias), expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-5, atol=1e-5)


def test_directions_are_what_their_names_say() -> None:
    """With the identity as head the hidden states are the logits; p is the teacher (0.9, 0.1), q the student (½, ½)."""
    p, q, head = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log(), torch.eye(2)

    def value(spec: Divergence, teacher: Tensor, student: Tensor) -> float:
        loss: Tensor = divergence_sum(student, head, teacher, head, torch.ones(1), spec)[0]
        return loss.item()

    forward, reverse, symmetric = Divergence(1, 0), Divergence(0, 1), Divergence(0, 0, 1)
    assert value(forward, p, q) == pytest.approx(0.9 * 0.5877867 + 0.1 * -1.6094379, abs=1e-6)
    assert value(reverse, p, q) == pytest.approx(value(forward, q, p), abs=1e-6)
    assert value(forward, p, q) != pytest.approx(value(reverse, p, q), abs=1e-2)
    assert value(symmetric, p, q) == pytest.approx(value(symmetric, q, p), abs=1e-6)


def test_no_completion_token_gives_a_zero_that_is_connected_to_the_graph() -> None:
    hidden, head, teacher, teacher_head, weights = inputs(0)
    for loss, per_token in (
        divergence_sum(hidden, head, teacher, teacher_head, weights, Divergence()),
        nll_sum(hidden, Head(head), torch.zeros(0, dtype=torch.long), weights),
    ):
        loss.backward()
        assert loss.item() == 0
        assert per_token.divergence.shape == (0,)
    assert head.grad is not None
    assert head.grad.abs().max() == 0


def test_a_frozen_head_is_left_alone() -> None:
    hidden, head, teacher, teacher_head, weights = inputs()
    loss, _ = divergence_sum(hidden, head.detach(), teacher, teacher_head, weights, Divergence())
    loss.backward()
    assert hidden.grad is not None
    *_, to_hidden, _ = reference(Divergence(), hidden, head, teacher, teacher_head, weights)
    torch.testing.assert_close(hidden.grad.double(), to_hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_likelihood_is_that_of_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "CHUNK_BYTES", chunk * 4 * V)
    hidden, head, _, _, weights = inputs()
    targets = torch.arange(N) % V
    loss, per_token = nll_sum(hidden, Head(head), targets, weights)
    loss.backward()
    h, w = (t.detach().double().requires_grad_() for t in (hidden, head))
    each = torch.nn.functional.cross_entropy(h @ w.T, targets, reduction="none")
    expected = (each * weights).sum()
    to_hidden, to_head = torch.autograd.grad(expected, [h, w])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.divergence.double(), each.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), to_hidden, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(head.grad.double(), to_head, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


def test_half_precision_follows_full_precision() -> None:
    *given, weights = inputs()
    hidden, head, teacher, teacher_head = (t.detach().bfloat16().requires_grad_(t.requires_grad) for t in given)
    loss, _ = divergence_sum(hidden, head, teacher, teacher_head, weights, Divergence())
    loss.backward()
    full = (t.detach().float() for t in (hidden, head, teacher, teacher_head))
    expected, *_, to_head = reference(Divergence(), *full, weights)  # type: ignore[call-arg]
    assert head.grad is not None
    assert head.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert torch.nn.functional.cosine_similarity(head.grad.flatten().double(), to_head.flatten(), dim=0) > 0.999
