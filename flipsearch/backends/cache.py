"""Scaled dot-product attention that does not copy shared key-value heads while decoding.

With a mask, transformers' "sdpa" first repeats every key-value head for each query head of its group, at every token:
most of a decoding step. For one new token the query heads of a group can stand in the place of query positions instead,
which is the same sum without the copies.

A key-value cache with room to grow, whose rows can be taken out, repeated and put below each other.

transformers' own DynamicCache copies every key and value at every token; here they stay where they are until the room
is used up. Shapes: B rows, H key-value heads, T cached tokens, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "flipsearch_grouped_sdpa"


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
    """Return what transformers' "sdpa" returns: (B, queries, heads, width) of query (B, heads, queries, width)."""
    num_rows, num_heads, num_queries, width = query.shape
    num_groups = key.shape[1]
    plain = dropout == 0 and not options.get("output_attentions") and options.get("position_bias") is None
    one_mask = attention_mask is None or attention_mask.shape[1] == 1
    if num_queries > 1 or num_groups == num_heads or not plain or not one_mask:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    grouped = query.view(num_rows, num_groups, num_heads // num_groups, width)
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(num_rows, 1, num_heads, value.shape[-1]), None


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


ROOM = 64
"""Tokens by which a full buffer grows."""


class RoomyLayer(DynamicLayer):  # its __init_subclass__ has no types
    """One layer's keys and values (B, H, T, D) at the front of buffers with room for more tokens."""

    _rooms: tuple[torch.Tensor, torch.Tensor]
    """Keys and values (B, H, T + room, D)."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens (B, H, new, D) and return all keys and values (B, H, T, D)."""
        new = (key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self._lay_out(new, len(key_states), end)
        elif end > self._rooms[0].shape[-2]:
            old = self.states()
            self._lay_out(old, len(key_states), end)
            for room, states in zip(self._rooms, old, strict=True):
                room[..., :start, :] = states
        for room, states in zip(self._rooms, new, strict=True):
            room[..., start:end, :] = states
        return self._show(end)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values (B, H, T, D)."""
        return self._show(self.get_seq_length())

    def take(self, source: "RoomyLayer", rows: torch.Tensor, first_token: int = 0) -> None:
        """Become the `rows` (they may repeat) of `source`, from `first_token` on; `source` may be this layer."""
        kept = [states[..., first_token:, :] for states in source.states()]
        self._lay_out(kept, len(rows), kept[0].shape[-2])
        for room, states in zip(self._rooms, kept, strict=True):
            room[..., : states.shape[-2], :] = states[rows]

    def gather(self, layers: Sequence["RoomyLayer"]) -> None:
        """Become the rows of `layers`, one below the other; shorter ones get zeros in front."""
        parts = [layer.states() for layer in layers]
        width = max(layer.get_seq_length() for layer in layers)
        self._lay_out(parts[0], sum(len(keys) for keys, _ in parts), width)
        for index, room in enumerate(self._rooms):
            row = 0
            for part in parts:
                states = part[index]
                rows, front = slice(row, row + len(states)), width - states.shape[-2]
                # Zeros, because what a mask hides is still multiplied by 0, and 0 * nan is nan.
                room[rows, :, :front] = 0
                room[rows, :, front:width] = states
                row = rows.stop

    def _lay_out(self, like: Sequence[torch.Tensor], num_rows: int, num_tokens: int) -> None:
        """Make unfilled buffers for `num_tokens` and some more, with the heads and widths of `like`."""
        keys, values = (
            states.new_empty((num_rows, states.shape[1], num_tokens + ROOM, states.shape[-1])) for states in like
        )
        self.lazy_initialization(keys, values)
        self._rooms = (keys, values)
        self._show(num_tokens)

    def _show(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._rooms[0][..., :num_tokens, :], self._rooms[1][..., :num_tokens, :]
        self.keys, self.values = keys, values  # where the models look
        return keys, values


class RoomyCache(DynamicCache):
    """A DynamicCache of roomy layers, for models whose layers all attend to all earlier tokens."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.roomy = [RoomyLayer() for _ in self.layers]  # type: ignore[no-untyped-call]
        self.layers = list(self.roomy)

    def take(self, source: "RoomyCache", rows: torch.Tensor, first_token: int = 0) -> None:
        """Become the `rows` (they may repeat) of `source`, from `first_token` on; `source` may be this cache."""
        for layer, other in zip(self.roomy, source.roomy, strict=True):
            layer.take(other, rows, first_token)

    def gather(self, caches: Sequence["RoomyCache"]) -> None:
        """Become the rows of `caches`, one below the other; shorter ones get zeros in front, to be masked."""
        for index, layer in enumerate(self.roomy):
            layer.gather([cache.roomy[index] for cache in caches])


def attends_to_all(config: PreTrainedConfig) -> bool:
    """Return whether every layer is plain full attention, so that a RoomyCache fits the model."""
    layers = DynamicCache(config=config).layers
    return len(layers) > 0 and all(type(layer) is DynamicLayer for layer in layers)
