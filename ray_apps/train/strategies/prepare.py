"""What every strategy does to a base before it spreads it."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from ray_apps.train.adapters import add_lora
from ray_apps.train.attention import has_flash_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.objective import WeightedLoss


def with_loss(model: PreTrainedModel, config: TrainConfig) -> WeightedLoss:
    """`model` with its adapters, as the module whose forward pass is the loss."""
    adapted: nn.Module = model if config.lora is None else add_lora(model, config.lora)
    checkpoint_layers(model, config)
    if config.compile:
        _compile(model)
    return WeightedLoss(adapted)


def checkpoint_layers(model: PreTrainedModel, config: TrainConfig) -> None:
    """Have each decoder layer's forward pass run again in the backward pass, as far as `config` wants it."""
    if not config.activation_checkpointing:
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if config.activation_checkpointing == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _kept_operators())
    model.activation_checkpointing_enable(settings)


def _kept_operators() -> list[Any]:
    """Those of a layer that do most of its arithmetic."""
    aten = torch.ops.aten
    operators = [
        aten.mm.default,
        aten.addmm.default,
        torch.ops.vicuna_ray.causal_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]
    if has_flash_attention():
        import flash_attn.flash_attn_interface  # noqa: F401 - registers the operator

        operators.append(torch.ops.flash_attn._flash_attn_varlen_forward.default)
    return operators


def _compile(model: PreTrainedModel) -> None:
    """Compile the parts of each layer, once for all layers and lengths: a checkpointed layer itself is left alone."""
    for layer in decoder_layers(model):
        for part in layer.children():
            part.compile(dynamic=True)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """The type of the forward and backward pass."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that make up most of `model`, first to last."""
    base: Any = model.base_model
    return list(base.layers)


def cast_parameters(module: nn.Module, *, trained: torch.dtype, frozen: torch.dtype) -> None:
    """Give the parameters these types. Buffers keep theirs: positions are computed in fp32 from one."""
    for parameter in module.parameters():
        dtype = trained if parameter.requires_grad else frozen
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
