"""What every strategy does to a base before it spreads it."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ray_apps.train.adapters import add_lora
from ray_apps.train.config import TrainConfig
from ray_apps.train.objective import WeightedLoss


def with_loss(model: PreTrainedModel, config: TrainConfig) -> WeightedLoss:
    """`model` with its adapters, as the module whose forward pass is the loss."""
    adapted: nn.Module = model if config.lora is None else add_lora(model, config.lora)
    if config.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        _compile(model)
    return WeightedLoss(adapted)


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
