"""Model FLOPs utilisation: the operations that the model needs, over those the devices could have done."""

from pathlib import Path
from typing import Any

from ray_apps.models import check_causal_lm
from ray_apps.train.plan.gpus import GPUS


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
    name = device.lower().replace(" ", "")
    known = {key.partition("-")[0]: gpu for key, gpu in GPUS.items()}
    for short in sorted(known, key=len, reverse=True):
        if short in name:
            return known[short].peak_tflops * 1e12, "its datasheet"
    return measured, "a measured matrix product"
