"""LoRA: which weights are trained when not all are."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from data_prep.errors import ConfigError
from ray_apps.train.config import LoraSettings


def check_targets(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Refuse adapters for layers that `model` does not have, or that are the input embedding once more.

    Raises:
        ConfigError: naming them, and those it has.
    """
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = {name.rsplit(".", 1)[-1] for name, module in layers if module is not tied}
    missing = sorted(set(settings.target_modules) - names)
    if missing:
        raise ConfigError(
            f"train.lora.target_modules: the model has no linear layer of its own called {', '.join(missing)}; "
            f"valid: {', '.join(sorted(names))}"
        )


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> torch.nn.Module:
    """Freeze `model` and give the target modules adapters."""
    from peft import get_peft_model

    return cast(torch.nn.Module, get_peft_model(cast(Any, model), peft_config(settings)))


def peft_config(settings: LoraSettings, **fields: Any) -> Any:
    """`settings` in peft's own form."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
        **fields,
    )
