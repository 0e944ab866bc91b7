"""Attention that never lets one packed chat see another.

On a GPU FlashAttention takes the borders of the chats directly: the package's, or in 16 bits the kernel that PyTorch
has of it. Elsewhere each chat is attended to by itself, through transformers' attention interface: no mask of tokens ×
tokens is ever made.
"""

import importlib.util
import logging
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ray_apps.train.block_attention import causal_attention

logger = logging.getLogger(__name__)

PER_DOCUMENT = "per_document_sdpa"


def choose_attention(setting: str, device: torch.device, precision: str = "bf16") -> str:
    """The name under which transformers knows the attention that `setting` asks for on `device`.

    `auto` in fp32 is scaled dot product attention: FlashAttention takes 16-bit types alone.
    """
    register()
    if setting == "sdpa":
        return PER_DOCUMENT
    if setting == "flash_attention_2":
        return setting
    if device.type == "cuda" and has_flash_attention() and precision != "fp32":
        return "flash_attention_2"
    logger.info(
        "attention: scaled dot product attention; flash-attn is not to be had on %s in %s", device.type, precision
    )
    return PER_DOCUMENT


def has_flash_attention() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(PER_DOCUMENT, per_document_attention)
    AttentionMaskInterface.register(PER_DOCUMENT, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


@torch.compiler.disable  # the loop would be compiled anew for each number of chats
def per_document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each chat of a packed sequence.

    `query`: `[1, heads, tokens, head_dim]`; `key`, `value`: `[1, kv_heads, tokens, head_dim]`; `cu_seq_lens_q`:
    `[documents + 1]`; `max_length_q`: tokens of the longest. Returns `[1, tokens, heads, head_dim]`.
    """
    if cu_seq_lens_q is not None and max_length_q is not None and _takes_borders(query) and not dropout:
        return _between_borders(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    bounds = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _by_blocks if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout else _sdpa
    outputs = [
        attend(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], scale, dropout)
        for start, end in pairwise(bounds)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _takes_borders(query: torch.Tensor) -> bool:
    """Whether PyTorch's kernel of FlashAttention 2 is for it: 16 bits, heads of at most 256, Ampere or later."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _between_borders(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    """All chats in one call (Dao 2023)."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    attended: Any = varlen_attn(
        *(queries, keys, values, borders, borders, longest, longest),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    output: torch.Tensor = attended[None]
    return output


def _by_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    output: torch.Tensor = causal_attention(query[0], key[0], value[0], scale)
    return output[None]


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, scale=scale, is_causal=True, enable_gqa=grouped
    )
