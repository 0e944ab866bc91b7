"""Memory to serve a model: weights at each precision, and the cache of keys and values of one conversation."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ray_apps.train.plan.tally import one_layer_model

BF16_BYTES = 2
NF4_BLOCK = 64
"""Weights that share a scale (Dettmers et al. 2023)."""
SCALE_BLOCK = 256
"""Scales that share a scale where they are quantised as well."""


@dataclass(frozen=True)
class ServingMemory:
    """Bytes of the weights by precision, and of the cache, bf16, for one conversation of `context_length` tokens."""

    parameters: int
    weights_bytes: dict[str, int]
    cache_bytes: int
    context_length: int


def serving_memory(model_config: PreTrainedConfig, context_length: int) -> ServingMemory:
    """Memory of the model that `model_config` describes.

    Quantised are the linear layers of the decoder layers, as bitsandbytes does it; embedding, norms and output layer
    stay bf16. int8 has an fp32 scale for each row of a matrix, nf4 one for 64 weights; with `double` those are int8
    themselves, with an fp32 scale for 256 of them.
    """
    model = one_layer_model(model_config)
    num_layers: int = model_config.get_text_config().num_hidden_layers
    layer = model.base_model.layers[0]
    layer_parameters = _total(layer)
    linear = [module.weight for module in layer.modules() if isinstance(module, nn.Linear)]
    quantised = num_layers * sum(weight.numel() for weight in linear)
    rows = num_layers * sum(weight.shape[0] for weight in linear)
    parameters = num_layers * layer_parameters + _total(model) - layer_parameters
    others = BF16_BYTES * (parameters - quantised)
    scales = quantised // NF4_BLOCK
    return ServingMemory(
        parameters,
        {
            "fp32": 4 * parameters,
            "bf16": BF16_BYTES * parameters,
            "int8": others + quantised + 4 * rows,
            "nf4": others + quantised // 2 + 4 * scales,
            "nf4, double": others + quantised // 2 + scales + 4 * (scales // SCALE_BLOCK),
        },
        context_length * _cache_bytes_per_token(model_config),
        context_length,
    )


def _total(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _cache_bytes_per_token(model_config: PreTrainedConfig) -> int:
    """A key and a value for each head that has its own, in each layer."""
    text: Any = model_config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * BF16_BYTES * text.num_hidden_layers * num_heads * head_dim)
