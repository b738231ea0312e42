"""Decodes one batch of prompts on a transformers model; knows nothing of text.

Prompts are padded on the left; masks and positions come from lengths. A prefix that many prompts share (a context in
the system message) is computed once and its cache rows repeated. Rows that have ended leave the batch and its cache.
A model that cannot be decoded this way is decoded one prompt at a time (DecodingPath), without any of this.

The next token is the likeliest one or a sample that depends on nothing but its own request: every request has its own
stream of uniform numbers, one per token, generated before decoding starts. Token t is the inverse of the cumulative
distribution at number t, so a completion does not depend on its neighbours, the batch size or the device's generator.

B rows in the batch now, N rows at its start, T cached tokens with padding, C completion tokens, V vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, PreTrainedModel

from flipsearch.backends.base import stream_seed
from flipsearch.backends.cache import PreallocatedCache, attends_to_all
from flipsearch.backends.chat import ThoughtBudget
from flipsearch.core.records import Request, Sampling

Ids = Sequence[int]
Choose = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(logits (B, V), rows (B,) as numbered at the start, step) -> tokens (B,)."""
ENDED_SHARE = 1 / 4
"""Ended rows leave the batch when they are this share of it: removing them costs about one step."""
PART_TOKENS = {True: 1024, False: 32768}
"""Prompt tokens per forward pass on a CPU (what its caches hold) and on anything else."""

MODEL_STATES = ("past_key_values", "cache_params", "state")
"""Names under which models return and take their state of earlier tokens."""


class DecodingPath(StrEnum):
    """How a model is decoded, fastest first; which one is right for it is found when it is loaded (loading.py)."""

    BATCHED = "batched"
    ALONE = "one prompt at a time"
    UNCACHED = "one prompt at a time without a cache"

    def keep_on(self, model: PreTrainedModel) -> None:
        """Record on the model how it is decoded, for all later users: a judge, a student in training."""
        cast(Any, model).decoding_path = self

    @classmethod
    def of(cls, model: PreTrainedModel) -> "DecodingPath":
        """Return how a model is decoded; in batches where nothing is recorded."""
        return cls(getattr(model, "decoding_path", cls.BATCHED))


def chooser(requests: Sequence[Request], sampling: Sampling, device: torch.device, first: int = 0) -> Choose:
    """Return the rule that picks the next tokens of a batch of requests, from position `first` of the completions."""
    if sampling.temperature == 0:
        return lambda logits, rows, step: logits.argmax(-1)
    generators = [torch.Generator().manual_seed(stream_seed(request, sampling)) for request in requests]
    streams = [torch.rand(sampling.longest, generator=rng, dtype=torch.float64) for rng in generators]
    uniforms = torch.stack(streams).to(device)  # (N, C)

    def sample(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        # Cumulative sums over a large vocabulary need more than float32.
        probabilities = keep_likely(logits.double() / sampling.temperature, sampling.top_k, sampling.top_p).softmax(-1)
        return inverse_cdf(probabilities, uniforms[rows, first + step])

    return sample


def _seen(prompts: Sequence[Ids], logits: torch.Tensor) -> torch.Tensor:
    """Return which tokens (N, V) each of some prompts holds, V as in `logits`."""
    seen = torch.zeros((len(prompts), logits.shape[-1]), dtype=torch.bool)
    for row, ids in zip(seen, prompts, strict=True):
        row[list(ids)] = True
    return seen.to(logits.device)


def _penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return logits (B, V) in which `seen` tokens are less likely (Keskar et al. 2019, arXiv 1909.05858)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


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


@dataclass(slots=True)
class DecodingBatch:
    """Rows being decoded, with the keys and values of `num_cached` = T tokens."""

    cache: Cache
    mask: torch.Tensor
    """(B, T + C) bool: real tokens; True where not yet written."""
    lengths: torch.Tensor
    """(B,) real tokens so far: the position of the next one."""
    rows: torch.Tensor
    """(B,) the number of each row at the start."""
    num_cached: int


class Decoder:
    """A causal language model, and what the decoding loop must know about it; `path` None is the recorded one."""

    def __init__(self, model: PreTrainedModel, eos_ids: Collection[int], path: DecodingPath | None = None) -> None:
        self.model = model
        self.path = path or DecodingPath.of(model)
        self.device = model.device
        self._eos_set = frozenset(eos_ids)
        self.eos_ids = torch.tensor(sorted(eos_ids), dtype=torch.long, device=model.device)
        self.shares_prefixes = self.path is DecodingPath.BATCHED and attends_to_all(model.config)
        parameters = inspect.signature(type(model).forward).parameters  # the class's: a trainer may wrap `forward`
        self._takes_positions = "position_ids" in parameters
        self._limits_logits = "logits_to_keep" in parameters

    def ends(self, completion_ids: Ids) -> bool:
        """Return whether a completion ended by itself."""
        return len(completion_ids) > 0 and completion_ids[-1] in self._eos_set

    @torch.inference_mode()
    def complete(
        self,
        prompts: Sequence[Ids],
        prefixes: Sequence[int],
        max_tokens: int,
        choose: Choose,
        budgets: Sequence[ThoughtBudget] = (),
        penalty: float = 1.0,
    ) -> list[Ids | None]:
        """Return the completion ids of each prompt: at most `max_tokens`, up to and including the first end token.

        None where a logit was not a finite number. The first `prefixes[i]` tokens of prompt i are computed once for
        all prompts that begin with the same ones. A budget for each prompt closes its thought and ends its answer. A
        repetition `penalty` other than 1 makes tokens that prompt or completion hold less likely.
        """
        if self.path is not DecodingPath.BATCHED:
            return [
                self._complete_alone(ids, row, max_tokens, choose, budgets[row] if budgets else None, penalty)
                for row, ids in enumerate(prompts)
            ]
        logits, batch = self._start(prompts, prefixes, max_tokens)
        chosen = torch.zeros((len(prompts), max_tokens), dtype=torch.long, device=self.device)  # (N, C)
        counts = torch.full((len(prompts),), max_tokens, device=self.device)
        alive = torch.ones_like(batch.rows, dtype=torch.bool)
        finite = torch.ones_like(alive)
        seen = _seen(prompts, logits) if penalty != 1 else None
        for step in range(max_tokens):
            likely = logits if seen is None else _penalised(logits, seen[batch.rows], penalty)
            tokens = choose(likely, batch.rows, step)  # (B,)
            is_full = torch.zeros_like(alive)
            if budgets:
                tokens, is_full = _follow(budgets, batch.rows, alive, tokens)
            chosen[batch.rows, step] = tokens
            if seen is not None:
                seen[batch.rows, tokens] = True
            finite[batch.rows] &= logits.amax(-1).isfinite()  # NaN is larger than any number, and all of -inf is -inf
            ended = alive & (torch.isin(tokens, self.eos_ids) | is_full | ~finite[batch.rows])
            counts[batch.rows[ended]] = step + 1
            alive &= ~ended
            num_alive = int(alive.sum())
            if num_alive == 0 or step + 1 == max_tokens:
                break
            if len(alive) - num_alive >= ENDED_SHARE * len(alive):
                kept = alive.nonzero()[:, 0]
                batch, tokens, alive = _take(batch, kept), tokens[kept], alive[kept]
            batch.num_cached += 1
            mask = batch.mask[:, : batch.num_cached]
            logits = self._forward(tokens[:, None], mask, batch.lengths[:, None], batch.cache)[:, -1]
            batch.lengths = batch.lengths + 1
        return [
            ids[:count] if is_finite else None
            for ids, count, is_finite in zip(chosen.tolist(), counts.tolist(), finite.tolist(), strict=True)
        ]

    def _complete_alone(
        self, prompt: Ids, row: int, max_tokens: int, choose: Choose, budget: ThoughtBudget | None, penalty: float
    ) -> Ids | None:
        keeps = self.path is DecodingPath.ALONE
        ids, rows = list(prompt), torch.tensor([row], device=self.device)
        states: dict[str, Any] = {}
        for step in range(max_tokens):
            unseen = torch.tensor([ids[-1:] if states else ids], device=self.device)
            output = self.model(input_ids=unseen, use_cache=keeps, **states)
            if keeps:
                states = {name: output[name] for name in MODEL_STATES if output.get(name) is not None}
            logits = output.logits[:, -1].float()
            if not bool(logits.amax(-1).isfinite()):
                return None
            if penalty != 1:
                logits = _penalised(logits, _seen([ids], logits), penalty)
            token = int(choose(logits, rows, step))
            if budget:
                token = token if budget.next_id is None else budget.next_id
                budget.follow(token)
            ids.append(token)
            if token in self._eos_set or (budget and budget.is_full):
                break
        return ids[len(prompt) :]

    @torch.inference_mode()
    def logits_after(self, prompts: Sequence[Ids], prefixes: Sequence[int], num: int) -> torch.Tensor:
        """Return the logits (B, num, V) after the last `num` tokens of each prompt, padded in front with zeros."""
        if self.path is not DecodingPath.BATCHED:
            kept = {"logits_to_keep": num} if self._limits_logits else {}
            rows = (torch.tensor([list(ids)], device=self.device) for ids in prompts)
            parts = [self.model(input_ids=ids, use_cache=False, **kept).logits[:, -num:].float() for ids in rows]
        elif self.shares_prefixes:
            parts = [logits for logits, _, _ in self._forward_in_parts(prompts, prefixes, num)]
        else:
            parts = [self._forward_whole(prompts, num)[0]]
        return torch.cat([pad(logits, (0, 0, num - logits.shape[1], 0)) for logits in parts])

    @torch.inference_mode()
    def token_bytes(self) -> int:
        """Return the bytes that a batch's cache grows by for each token, measured: configs may not say it."""
        if self.path is not DecodingPath.BATCHED:
            return 0
        _, _, cache = self._forward_whole([[0]], 1)
        held = [states for layer in cache.layers for states in (getattr(layer, "keys", 0), getattr(layer, "values", 0))]
        return sum(states.nbytes for states in held if isinstance(states, torch.Tensor))

    def _start(
        self, prompts: Sequence[Ids], prefixes: Sequence[int], max_tokens: int
    ) -> tuple[torch.Tensor, DecodingBatch]:
        """Return the logits (B, V) after the prompts and the batch that holds them."""
        if self.shares_prefixes:
            parts = list(self._forward_in_parts(prompts, prefixes, 1))
            width = max(mask.shape[-1] for _, mask, _ in parts)
            mask = torch.cat([pad(mask, (width - mask.shape[-1], 0)) for _, mask, _ in parts])
            logits, preallocated = torch.cat([logits for logits, _, _ in parts]), PreallocatedCache(self.model.config)
            preallocated.gather([part_cache for _, _, part_cache in parts])
            cache: Cache = preallocated
        else:
            logits, mask, cache = self._forward_whole(prompts, 1)
        unwritten = mask.new_ones((len(prompts), max_tokens))
        rows = torch.arange(len(prompts), device=self.device)
        full_mask = torch.cat([mask, unwritten], dim=-1)
        return logits[:, -1], DecodingBatch(cache, full_mask, mask.sum(-1), rows, num_cached=mask.shape[-1])

    def _forward_whole(self, prompts: Sequence[Ids], num: int) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Compute all prompts in one pass: logits (B, num, V), mask (B, T), cache."""
        cache = DynamicCache(config=self.model.config)
        ids, mask = self._pad(prompts)
        return self._forward(ids, mask, _positions(mask), cache, num), mask, cache

    def _forward_in_parts(
        self, prompts: Sequence[Ids], prefixes: Sequence[int], num: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, PreallocatedCache]]:
        """Compute shared prefixes once, then yield consecutive prompts: logits (B, num, V), mask (B, T), cache."""
        heads = [tuple(ids[:length]) for ids, length in zip(prompts, prefixes, strict=True)]
        if not all(heads) or 2 * sum(map(len, set(heads))) > sum(map(len, heads)):
            heads = [()] * len(prompts)
        tails = [ids[len(head) :] for ids, head in zip(prompts, heads, strict=True)]
        distinct = {head: row for row, head in enumerate(dict.fromkeys(heads))}
        head_cache = PreallocatedCache(self.model.config)
        ids, head_mask = self._pad(list(distinct))
        if ids.shape[-1] > 0:
            self._forward(ids, head_mask, _positions(head_mask), head_cache)
        for part in _parts(tails, PART_TOKENS[self.device.type == "cpu"]):
            rows = torch.tensor([distinct[head] for head in heads[part]], device=self.device)
            cache, front = PreallocatedCache(self.model.config), head_mask[rows]
            if front.shape[-1] > 0:
                cache.take(head_cache, rows)
            ids, tail_mask = self._pad(tails[part])
            mask = torch.cat([front, tail_mask], dim=-1)
            positions = front.sum(-1, keepdim=True) + _positions(tail_mask)
            yield self._forward(ids, mask, positions, cache, num), mask, cache

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache, num: int = 1
    ) -> torch.Tensor:
        """Return the float32 logits (B, num, V) after the last `num` tokens, or after all if there are fewer."""
        options = {"position_ids": positions} if self._takes_positions else {}
        kept = {"logits_to_keep": num} if self._limits_logits else {}
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options, **kept
        )
        logits: torch.Tensor = output.logits[:, -num:].float()
        return logits

    def _pad(self, prompts: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask (B, T), padded on the left; masked ids are 0 and never attended to."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        return ids, torch.arange(width, device=self.device) >= (width - lengths)[:, None]


def shared_prefixes(prompts: Sequence[Ids], groups: Sequence[object]) -> list[int]:
    """Return how many leading tokens each prompt shares with all of its group; its last token never counts."""
    shared: dict[object, Ids] = {}
    for ids, group in zip(prompts, groups, strict=True):
        prefix = shared.get(group, ids)[: max(0, len(ids) - 1)]
        differing = (i for i, (left, right) in enumerate(zip(prefix, ids, strict=False)) if left != right)
        shared[group] = prefix[: next(differing, len(prefix))]
    return [len(shared[group]) for group in groups]


def _follow(
    budgets: Sequence[ThoughtBudget], rows: torch.Tensor, alive: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens (B,) with those that budgets force, and whether each row's answer is full."""
    ids, is_full = tokens.tolist(), [False] * len(tokens)
    for i, (row, is_alive) in enumerate(zip(rows.tolist(), alive.tolist(), strict=True)):
        if is_alive:
            forced = budgets[row].next_id
            ids[i] = ids[i] if forced is None else forced
            budgets[row].follow(ids[i])
            is_full[i] = budgets[row].is_full
    return torch.tensor(ids, device=tokens.device), torch.tensor(is_full, device=tokens.device)


def _parts(prompts: Sequence[Ids], max_tokens: int) -> Iterator[slice]:
    """Yield slices of consecutive prompts that have at most `max_tokens` tokens with padding, or a single prompt."""
    start, width = 0, 0
    for end, ids in enumerate(prompts):
        width = max(width, len(ids))
        if end > start and width * (end + 1 - start) > max_tokens:
            yield slice(start, end)
            start, width = end, len(ids)
    yield slice(start, len(prompts))


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the position (B, T) of each real token in its row; 0 for padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _take(batch: DecodingBatch, kept: torch.Tensor) -> DecodingBatch:
    """Return the batch with only the `kept` rows, without the padding that all of them have in front."""
    mask, first = batch.mask[kept], 0
    if isinstance(batch.cache, PreallocatedCache):
        first = int(mask.int().argmax(-1).min())
        batch.cache.take(batch.cache, kept, first)
    else:
        batch.cache.reorder_cache(cast(torch.LongTensor, kept))
    return DecodingBatch(batch.cache, mask[:, first:], batch.lengths[kept], batch.rows[kept], batch.num_cached - first)
