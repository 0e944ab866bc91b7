"""Causal attention in bf16 on a CPU, by blocks of queries.

PyTorch's own kernel runs at a quarter of a processor's bf16 rate. Here the arithmetic is in batched matrix products,
which do reach it: that of queries and keys in fp32, so that scores are as exact as the kernel's, the others in bf16.
Scores exist for one block of queries at a time, and are computed again in the backward pass (Dao et al. 2022, without
its tiles of keys: a cache holds more than a GPU's shared memory).
"""

from typing import Any

import torch

QUERIES = 128
"""Queries of a block: the fastest of 64 to 512 with heads of 64."""


@torch.library.custom_op("vicuna_ray::causal_attention", mutates_args=())
def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax of scaled scores × value, where a query sees the keys up to its own position.

    `query`: `[heads, tokens, head_dim]`; `key`, `value`: `[kv_heads, tokens, head_dim]`, each shared by heads that
    follow one another. Returns `query`'s shape.
    """
    output = torch.empty(query.shape, dtype=query.dtype)
    blocks = _Blocks(query, key, scale)
    for start, end in blocks.bounds:
        weights = blocks.weights(start, end)
        blocks.rows(output, start, end).copy_(blocks.by_head(weights @ value[:, :end]))
    return output


@causal_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("vicuna_ray::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `query`, `key` and `value`; those of keys and values are summed in fp32."""
    to_query = torch.empty(query.shape, dtype=query.dtype)
    to_key, to_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
    blocks = _Blocks(query, key, scale)
    for start, end in blocks.bounds:
        weights = blocks.weights(start, end)
        seen = blocks.stacked(gradient, start, end)
        to_value[:, :end] += weights.transpose(1, 2) @ seen
        to_scores = torch._softmax_backward_data(seen @ value[:, :end].transpose(1, 2), weights, -1, weights.dtype)
        blocks.rows(to_query, start, end).copy_(blocks.by_head(to_scores @ key[:, :end]).mul_(scale))
        to_key[:, :end] += to_scores.transpose(1, 2) @ blocks.stacked(query, start, end)
    return to_query, to_key.mul_(scale).to(key.dtype), to_value.to(value.dtype)


@causal_attention_backward.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*causal_attention_backward(gradient, *ctx.saved_tensors, ctx.scale), None)


causal_attention.register_autograd(_backward, setup_context=_keep)


class _Blocks:
    """Blocks of queries. The heads that share a key are stacked: `[kv_heads, heads of each × queries, head_dim]`."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        self.scaled = query.float() * scale
        self.keys = key.float().transpose(1, 2)
        self.dtype = query.dtype
        self.kv_heads, tokens, self.head_dim = key.shape
        self.bounds = [(start, min(start + QUERIES, tokens)) for start in range(0, tokens, QUERIES)]
        self.future = torch.full((QUERIES, QUERIES), float("-inf")).triu(1)

    def rows(self, tensor: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """A view of the block's rows, `[kv_heads, heads of each, queries, head_dim]`."""
        heads: torch.Tensor = tensor.unflatten(0, (self.kv_heads, -1))
        return heads[:, :, start:end]

    def stacked(self, tensor: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """The block's rows, stacked."""
        return self.rows(tensor, start, end).reshape(self.kv_heads, -1, self.head_dim)

    def by_head(self, stacked: torch.Tensor) -> torch.Tensor:
        """Of a stacked block, the shape of `rows`."""
        return stacked.view(self.kv_heads, self.scaled.shape[0] // self.kv_heads, -1, stacked.shape[-1])

    def weights(self, start: int, end: int) -> torch.Tensor:
        """What each query of the block takes from each key: `[kv_heads, heads of each × queries, end]`."""
        scores = self.stacked(self.scaled, start, end) @ self.keys[:, :, :end]
        self.by_head(scores)[..., start:] += self.future[: end - start, : end - start]
        weights: torch.Tensor = scores.softmax(-1).to(self.dtype)
        return weights
