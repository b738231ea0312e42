"""Attention and a key-value cache that do not copy at every decoded token.

transformers' "sdpa" with a mask repeats every key-value head for each query head of its group, which is most of a
decoding step. For one new token the query heads of a group can be query positions instead: the same sum without copies.
Its DynamicCache copies every key and value at every token; here they stay in a buffer until its capacity is used up.

Shapes: B rows, H key-value heads, T cached tokens, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED_ATTENTION = "flipsearch_grouped_sdpa"
"""Name under which transformers finds `grouped_sdpa`."""
SPARE_TOKENS = 64
"""Tokens by which a full buffer grows."""


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return what transformers' "sdpa" returns: (B, queries, heads, D) for a query (B, heads, queries, D)."""
    num_rows, num_heads, num_queries, width = query.shape
    num_groups = key.shape[1]
    plain = dropout == 0 and not options.get("output_attentions") and options.get("position_bias") is None
    shares_mask = attention_mask is None or attention_mask.shape[1] == 1
    if num_queries > 1 or num_groups == num_heads or not plain or not shares_mask:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    grouped = query.view(num_rows, num_groups, num_heads // num_groups, width)
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(num_rows, 1, num_heads, value.shape[-1]), None


AttentionInterface.register(GROUPED_ATTENTION, grouped_sdpa)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), at the front of buffers with capacity for more tokens."""

    _buffers: tuple[torch.Tensor, torch.Tensor]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens (B, H, new, D) and return all keys and values (B, H, T, D)."""
        new = (key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self._allocate(new, len(key_states), end)
        elif end > self._buffers[0].shape[-2]:
            old = self._view(start)
            self._allocate(old, len(key_states), end)
            for buffer, states in zip(self._buffers, old, strict=True):
                buffer[..., :start, :] = states
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[..., start:end, :] = states
        return self._view(end)

    def take(self, source: "PreallocatedLayer", rows: torch.Tensor, first_token: int = 0) -> None:
        """Become the `rows` (repeats allowed) of `source` from `first_token` on; `source` may be this layer."""
        kept = [states[..., first_token:, :] for states in source._view(source.get_seq_length())]
        self._allocate(kept, len(rows), kept[0].shape[-2])
        for buffer, states in zip(self._buffers, kept, strict=True):
            buffer[..., : states.shape[-2], :] = states[rows]

    def gather(self, layers: Sequence["PreallocatedLayer"]) -> None:
        """Become the rows of `layers`, concatenated; shorter ones are padded with zeros in front."""
        parts = [layer._view(layer.get_seq_length()) for layer in layers]
        width = max(layer.get_seq_length() for layer in layers)
        self._allocate(parts[0], sum(len(keys) for keys, _ in parts), width)
        for index, buffer in enumerate(self._buffers):
            row = 0
            for part in parts:
                states = part[index]
                rows, front = slice(row, row + len(states)), width - states.shape[-2]
                # Zeros, because masked values are still multiplied by 0, and 0 * nan is nan.
                buffer[rows, :, :front] = 0
                buffer[rows, :, front:width] = states
                row = rows.stop

    def _allocate(self, like: Sequence[torch.Tensor], num_rows: int, num_tokens: int) -> None:
        """Make unfilled buffers for `num_tokens` and some more, with the heads and widths of `like`."""
        keys, values = (
            states.new_empty((num_rows, states.shape[1], num_tokens + SPARE_TOKENS, states.shape[-1]))
            for states in like
        )
        self.lazy_initialization(keys, values)
        self._buffers = (keys, values)
        self._view(num_tokens)

    def _view(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first `num_tokens` keys and values, which are also what the models see."""
        keys, values = (buffer[..., :num_tokens, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache(DynamicCache):
    """A DynamicCache of PreallocatedLayers, for models whose layers all attend to all earlier tokens."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.preallocated = [PreallocatedLayer() for _ in self.layers]  # type: ignore[no-untyped-call]
        self.layers = list(self.preallocated)

    def take(self, source: "PreallocatedCache", rows: torch.Tensor, first_token: int = 0) -> None:
        """Become the `rows` (repeats allowed) of `source` from `first_token` on; `source` may be this cache."""
        for layer, source_layer in zip(self.preallocated, source.preallocated, strict=True):
            layer.take(source_layer, rows, first_token)

    def gather(self, caches: Sequence["PreallocatedCache"]) -> None:
        """Become the rows of `caches`, concatenated; shorter ones are padded in front, to be masked."""
        for index, layer in enumerate(self.preallocated):
            layer.gather([cache.preallocated[index] for cache in caches])


def attends_to_all(config: PreTrainedConfig) -> bool:
    """Return whether every layer is plain full attention, so that a PreallocatedCache fits the model."""
    layers = DynamicCache(config=config).layers
    return len(layers) > 0 and all(type(layer) is DynamicLayer for layer in layers)
