"""Memory-lean pieces of the model that stock transformers lacks.

Attention: `softmax(Q Kᵀ · scale, causal) V` of each packed sample by itself, with K and V repeated for their query
heads. Stock SDPA leaves the repeating to the kernel, which only flash attention can; a card without it (a T4) then
computes all T × T scores of every head at once: the 8B model took 18 GiB for 4,096 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

ATTENTION = "kaggle_lib_segments"  # the name that `attn_implementation` takes


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query` is `(batch, heads, tokens, head size)`, `key` and `value` may have fewer heads; returns
    `(batch, tokens, heads, head size)`.

    `segments`: tokens of each sample in a packed row; they are exact where given. Without them `attention_mask` says
    what may be seen, and without that all earlier tokens may. `sliding_window`: only the last so many (Gemma, Mistral).
    `softcap`: scores are cap · tanh(scores ÷ cap) (Gemma 2), which no fused kernel does, so all T × T of them exist.
    """
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    mask = None if segments is not None else attention_mask

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        tokens, seen = query.shape[2], mask
        causal = mask is None and tokens > 1  # a single new token sees all before it
        if causal and (softcap or tokens > (sliding_window or tokens)):
            seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
            seen, causal = seen.triu(1 - (sliding_window or tokens)), False
        if softcap:
            scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
            scores = softcap * torch.tanh(scores / softcap)
            if seen is not None:  # not -inf: a pad sees nothing, and would be NaN
                scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
            weights = softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
            return torch.nn.functional.dropout(weights, dropout) @ value
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling, is_causal=causal
        )

    if segments is not None and len(segments) > 1:
        parts = (torch.split(tensor, list(segments), dim=2) for tensor in (query, key, value))
        out = torch.cat([attend(*part) for part in zip(*parts, strict=True)], dim=2)
    else:
        out = attend(query, key, value)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
