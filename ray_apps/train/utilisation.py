"""Model FLOPs utilisation: the operations that the model needs, over those the devices could have done."""

import re
from pathlib import Path
from typing import Any

from ray_apps.models import check_causal_lm
from ray_apps.train.adapters import add_lora
from ray_apps.train.config import LoraSettings
from ray_apps.train.plan.gpus import GPUS
from ray_apps.train.plan.tally import attention_width


def model_flops_per_token(directory: Path, context: float, lora: LoraSettings | None = None) -> float:
    """Operations a trained token needs, forward and backward, without recomputation: 4 N + 2 M + 12 L H Q T.

    N: weights without the input embedding, adapters included; M: those of them that are trained, all without `lora`;
    L, H, Q: layers, heads, dimensions of a head; T: tokens attended to, half of a chat of `context` tokens on average
    (Chowdhery et al. 2022, appendix B, where M is N).
    """
    model: Any = check_causal_lm(directory)
    settings = model.config.get_text_config()
    looked_up = None if settings.tie_word_embeddings else model.get_input_embeddings().weight
    if lora is not None:
        add_lora(model, lora)
    weights = [weight for weight in model.parameters() if weight is not looked_up]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    attention = 12.0 * settings.num_hidden_layers * attention_width(model.config) * context / 2
    return float(4.0 * sum(weight.numel() for weight in weights) + 2.0 * trained + attention)


def peak_flops(device: str, measured: float) -> tuple[float, str]:
    """Operations one device can do in a second, and whose figure that is: its datasheet's, or one measured here."""
    known = {key.partition("-")[0]: gpu for key, gpu in GPUS.items()}
    for word in re.findall(r"[a-z0-9]+", device.lower().replace("rtx ", "rtx")):
        if word in known:
            return known[word].peak_tflops * 1e12, "its datasheet"
    return measured, "a measured matrix product"
