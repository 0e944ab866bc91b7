"""LoRA (Hu et al. 2021): what adapters, as peft writes them, add to the weights of a model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def scale_of(config: Mapping[str, Any], rank: float | None = None, alpha: float | None = None) -> float:
    """What the product of both matrices is multiplied with: alpha / r, or alpha / √r (rsLoRA, Kalajdzievski 2023).

    Args:
        config: of `adapter_config.json`.
        rank, alpha: of a layer that has others than `config` says.
    """
    rank = float(config["r"]) if rank is None else rank
    alpha = float(config["lora_alpha"]) if alpha is None else alpha
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale · B A, added in fp32, in the type of W.

    Args:
        weight: W, `[out, in]`.
        down: A, `[r, in]`.
        up: B, `[out, r]`.
    """
    return (weight.float() + (up.float() @ down.float()) * scale).to(weight.dtype)
