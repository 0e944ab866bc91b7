"""AdamW and its learning-rate schedule."""

import math
from typing import Any, cast

import torch
from torch import nn

from ray_apps.train.config import TrainConfig


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The learning rate of optimiser step `step` (from 0) of `num_steps`.

    It rises linearly over the warm-up steps and reaches the full rate at the last of them, then falls to 0 as half a
    cosine (Loshchilov and Hutter 2017), linearly, or not at all.
    """
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[config.schedule]
    return config.learning_rate * factor


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters; vectors are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "params": [group for group in groups if group["params"]],
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "adamw_8bit":
        from bitsandbytes import optim

        return cast(torch.optim.Optimizer, cast(Any, optim).AdamW8bit(**settings))
    return torch.optim.AdamW(**settings, fused=True)


def begin_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that would only be made in the first step, so that a checkpoint can be read into it."""
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.state[parameter] = first_moments(parameter)
            else:  # bitsandbytes
                cast(Any, optimizer).init_state(group, parameter, number, position)


def first_moments(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state before the first step."""
    return {
        "step": torch.zeros((), device=weights.device),
        "exp_avg": torch.zeros_like(weights),
        "exp_avg_sq": torch.zeros_like(weights),
    }
