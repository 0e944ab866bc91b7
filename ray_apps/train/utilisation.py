"""Model FLOPs utilisation: the operations that the model needs, over those the devices could have done."""

from pathlib import Path
from typing import Any

from ray_apps.models import check_causal_lm

PEAK_FLOPS = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense bf16 (fp16) operations a second on tensor cores, by a part of the device's name; from NVIDIA's datasheets."""


def model_flops_per_token(directory: Path, context: float) -> float:
    """Operations a trained token needs, forward and backward, without recomputation: 6 N + 12 L H Q T.

    N: weights without the input embedding; L, H, Q: layers, heads, dimensions of a head; T: tokens attended to, half of
    a chat of `context` tokens on average (Chowdhery et al. 2022, appendix B).
    """
    model: Any = check_causal_lm(directory)
    settings = model.config.get_text_config()
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not settings.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    head = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    attention = 12.0 * settings.num_hidden_layers * settings.num_attention_heads * head * context / 2
    return float(6.0 * weights + attention)


def peak_flops(device: str, measured: float) -> tuple[float, str]:
    """Operations one device can do in a second, and whose figure that is: its datasheet's, or one measured here."""
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name in device:
            return PEAK_FLOPS[name], f"{name}'s datasheet"
    return measured, "a measured matrix product"
