"""Scaled dot-product attention that does not copy shared key-value heads while decoding.

With a mask, transformers' "sdpa" first repeats every key-value head for each query head of its group, at every token:
most of a decoding step. For one new token the query heads of a group can stand in the place of query positions instead,
which is the same sum without the copies.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
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
