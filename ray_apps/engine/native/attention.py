"""Attention of a pass: each segment to its own slot and to nothing else, through transformers' attention interface."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

from data_prep.errors import ModelError
from ray_apps.engine.native.cache import Pass

SLOTS = "slots"
"""The name under which transformers knows it. It has no mask of tokens × tokens there, and gets none."""

_KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(SLOTS, slot_attention)


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse a model whose layers are not plain attention.

    Raises:
        ModelError: naming what is not supported.
    """
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS_OF_LAYERS
    if kinds:
        raise ModelError(f"the native engine has no {', '.join(sorted(kinds))} layers; valid: full and sliding ones")
    if getattr(config, "attn_logit_softcapping", None):
        raise ModelError("the native engine has no attn_logit_softcapping")


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    current: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from `query` `[1, heads, tokens, size]` to `key` and `value` `[slots, key heads, length, size]`.

    A single token's query heads that share a key head stand in for several queries, so that no key is repeated.
    """
    num_heads, num_tokens, size = query.shape[1:]
    num_key_heads = key.shape[1]
    output = query.new_empty(num_tokens, num_heads, value.shape[-1])
    tokens = query[0].transpose(0, 1)
    at = 0
    for number, group in enumerate(current.groups):
        slots = slice(group[0].slot, group[-1].slot + 1)
        length = max(segment.end for segment in group)
        keys, values = key[slots, :, :length], value[slots, :, :length]
        mask = current.mask(number, sliding_window, query.device)
        if group[0].count == 1:
            last = at + len(group)
            grouped = tokens[at:last].reshape(len(group), num_key_heads, -1, size)
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
            output[at:last] = attended.reshape(len(group), num_heads, -1)
        else:
            last = at + group[0].count
            attended = scaled_dot_product_attention(
                query[:, :, at:last],
                keys,
                values,
                attn_mask=mask,
                scale=scaling,
                enable_gqa=num_heads != num_key_heads,
            )
            output[at:last] = attended[0].transpose(0, 1)
        at = last
    return output.unsqueeze(0), None
