"""Weights of linear layers in the order in which oneDNN reads them, for bf16 on a CPU.

As a matrix lies in a file, each product with it first puts it in order: with few tokens in a pass, as while answers are
written, that takes longer than the product. Same sums, other order of their terms.
"""

from functools import partial

import torch
from torch import nn

_TOKENS = 16
"""Of the passes for which the order is best; other numbers of tokens are read in it too."""


def pack(model: nn.Module) -> int:
    """Pack every plain linear layer of `model` that is in bf16 on a CPU that has products of it; returns how many.

    A packed layer keeps no weight of its own: nothing but its `forward` can be used. Packed weights are this process's
    alone, where those of a file are shared by all that read it; an embedding that is a last layer too is there twice.
    """
    if not can_pack():
        return 0
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_packable(module.weight)]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _TOKENS)
        bias = None if layer.bias is None else layer.bias.detach()
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        setattr(layer, "forward", partial(_product, packed=packed, bias=bias))  # noqa: B010 - what mypy takes for a method
    return len(layers)


def can_pack() -> bool:
    """Whether this torch has oneDNN, and this CPU its products of bf16."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_packable(weight: torch.Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _product(states: torch.Tensor, *, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return result
