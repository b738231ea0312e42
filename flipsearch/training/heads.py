"""How a model makes logits of its last hidden states: output embeddings, and whatever its own code does afterwards.

Logits are made for a few positions at a time (divergence.py). Most models multiply hidden states by the output
embeddings; some add a bias, scale the product or cap it (Granite, Command-R, Falcon-H1, Gemma 2, Phi-2, GPT-J). What
becomes of the product is not read off a config: the model's own `forward` is run with its decoder replaced by one that
returns the product, and its output embeddings by one that changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flipsearch.core.errors import TrainingError, one_line
from flipsearch.training.divergence import Head

ReadHead = Callable[[Any], Head]
"""Returns the head of a transformers model, with its weights as they are now."""
PROBE_IDS = (1, 2, 3, 4, 5)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the largest logit: a last bit, in the precision that the model computes in."""
LARGE_LOGITS = 300.0
"""Of a random model no logit comes near its cap: that nothing follows the product is tried on products up to here."""


def read_head(model: Any) -> ReadHead:
    """Return what reads the head of `model` and of its copies; TrainingError for one that cannot be computed apart."""
    name = type(model).__name__
    refusal = f"{name} does more to its logits than can be computed for a few tokens at a time; train another model."
    ids = torch.tensor([PROBE_IDS], device=model.device)
    try:
        follows = _what_follows_the_product(model, ids)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            product = plain_head(model).product(hidden)
            large = torch.linspace(-LARGE_LOGITS, LARGE_LOGITS, product.numel(), device=ids.device)
            large = large.to(product.dtype).view_as(product)
            transform = None if torch.equal(follows(large), large) else follows
            head = _head(model, transform)
            alone = torch.cat([head.logits(state[None]) for state in hidden])  # of one token, whatever the others are
            difference = (alone.float() - logits.float()).abs().max()
    except Exception as error:  # models of other kinds lack all sorts of things
        raise TrainingError(f"{refusal} ({one_line(error)})") from error
    if not difference <= TOLERANCE[product.dtype] * logits.float().abs().max():
        raise TrainingError(refusal)
    return lambda model: _head(model, transform)


def plain_head(model: Any) -> Head:
    """Return the head of a model whose logits are hidden states times output embeddings."""
    return _head(model, None)


def _head(model: Any, transform: Callable[[Tensor], Tensor] | None) -> Head:
    embeddings = model.get_output_embeddings()
    return Head(embeddings.weight, getattr(embeddings, "bias", None), transform)


def _what_follows_the_product(model: Any, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function (n, V) -> (n, V) that `model` applies to hidden states times output embeddings."""
    decoder, embeddings = model.get_decoder(), model.get_output_embeddings()
    forward = model.forward  # kept now: a trainer wraps it later
    with torch.no_grad():
        output = type(decoder(input_ids=ids, use_cache=False))

    def transform(product: Tensor) -> Tensor:
        zeros = torch.zeros((1, len(product)), dtype=torch.long, device=product.device)
        with (
            _replaced(decoder, lambda *_, **__: output(last_hidden_state=product[None])),
            _replaced(embeddings, lambda hidden: hidden.clone()),  # which the model may change in place
        ):
            logits: Tensor = forward(input_ids=zeros, use_cache=False).logits[0]
        return logits

    return transform


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    usual = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if usual is not None:
            module.forward = usual
