"""Training samples as padded tensors, in batches of similar length."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from pocket_model.corpus import Sample, samples

BATCH_SIZE = 64
POOL_BATCHES = 16
"""Batches sorted by length together: little padding, and still random."""
ORDER_SEED = 1


class Batch(NamedTuple):
    """Right-padded rows, each (B, T): at a position with a loss, `labels` has the target probability `weights`.

    `others` is the token with the remaining probability.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    others: torch.Tensor
    weights: torch.Tensor


class Row(NamedTuple):
    """One encoded sample; at `fork` the id `other` has probability 1 - p_target."""

    ids: list[int]
    num_before: int
    fork: int
    other: int
    p_target: float


def batches(tokenizer: PreTrainedTokenizerFast, num_steps: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of one process."""
    pool: list[Row] = []
    # One order for all processes: their batches of a step are then of similar length, and none waits for another.
    order = torch.Generator().manual_seed(ORDER_SEED)
    for sample in samples(num_steps * BATCH_SIZE, seed):
        pool.append(encode(tokenizer, sample))
        if len(pool) == BATCH_SIZE * POOL_BATCHES:
            yield from _bucketed(pool, order)
            pool = []
    if pool:
        yield from _bucketed(pool, order)


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> Row:
    """Tokenize a sample and find the first token in which its two decisions differ."""
    end = [tokenizer.eos_token_id] * sample.ends
    encoded = tokenizer([sample.before, sample.target, sample.other], add_special_tokens=False)["input_ids"]
    before, target, other = encoded[0], [*encoded[1], *end], [*encoded[2], *end]
    differences = (i for i, (left, right) in enumerate(zip(target, other, strict=False)) if left != right)
    fork = next(differences, 0) if sample.other else 0
    return Row([*before, *target], len(before), len(before) + fork, other[fork] if sample.other else 0, sample.p_target)


def _bucketed(pool: list[Row], order: torch.Generator) -> Iterator[Batch]:
    pool = sorted(pool, key=lambda row: len(row.ids))
    starts = range(0, len(pool), BATCH_SIZE)
    for index in torch.randperm(len(starts), generator=order).tolist():
        yield padded(pool[starts[index] : starts[index] + BATCH_SIZE])


def padded(rows: list[Row]) -> Batch:
    """Right-pad rows; causal attention needs no mask then."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    weights = torch.ones(len(rows), longest)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, row.num_before : len(row.ids)] = torch.tensor(row.ids[row.num_before :])
        weights[index, row.fork] = row.p_target
    others = labels.clone()
    for index, row in enumerate(rows):
        others[index, row.fork] = row.other
    return Batch(ids, labels, others, weights)
