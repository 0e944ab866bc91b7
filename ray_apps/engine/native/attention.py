"""Attention of a pass: each segment to its own slot and to nothing else, through transformers' attention interface."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from data_prep.errors import ModelError
from ray_apps.engine.native.cache import Pass

SLOTS = "slots"
"""The name under which transformers knows it. It has no mask of tokens × tokens there, and gets none."""

_KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}
_KNOWN_TENSORS = {"position_ids", "cache_position"}
"""Of what layers hand to attention, those that say what the pass says already."""


_OWN_POSITIONS = {
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Kinds of models whose first position is not 0."""


class UnsupportedAttentionError(Exception):
    """What a layer asks for is not done over slots."""


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(SLOTS, slot_attention)


def unsupported(config: PreTrainedConfig, reason: str) -> ModelError:
    """What is raised where this engine would not answer as the model does."""
    return ModelError(
        f"the native engine cannot serve a {config.model_type} model: {reason}; valid: a model of plain attention, or "
        "args.engine: vllm"
    )


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse a model whose layers are not plain attention, before its weights are read.

    Raises:
        ModelError: naming what is not supported.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS_OF_LAYERS
    if kinds:
        raise unsupported(config, f"it has {', '.join(sorted(kinds))} layers")
    if getattr(text, "attn_logit_softcapping", None):
        raise unsupported(config, "it has attn_logit_softcapping")
    if text.model_type in _OWN_POSITIONS or getattr(text, "attn_temperature_tuning", False):
        raise unsupported(config, "it counts positions in its own way")


def use_slots(model: PreTrainedModel) -> None:
    """Have the attention of `model` go to the slots of a cache. What only a pass shows, `slot_attention` refuses.

    Raises:
        ModelError: it cannot; naming why.
    """
    register()
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise unsupported(model.config, "it takes no position_ids")
    model.set_attn_implementation(SLOTS)
    if model.config.get_text_config()._attn_implementation != SLOTS:
        raise unsupported(model.config, "its attention is its own, not to be replaced in transformers")


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    current: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from `query` `[1, heads, tokens, size]` to `key` and `value` `[slots, key heads, length, size]`.

    A single token's query heads that share a key head stand in for several queries, so that no key is repeated.

    Raises:
        UnsupportedAttentionError: the layer asks for more than to attend to what is before a token.
    """
    _check_plain(module, attention_mask, kwargs)
    if sliding_window is None and _slides(module, key.shape[2]):
        raise UnsupportedAttentionError("it tells its window to its mask alone")
    num_heads, num_tokens, size = query.shape[1:]
    num_key_heads = key.shape[1]
    output = query.new_empty(num_tokens, num_heads, value.shape[-1])
    tokens = query[0].transpose(0, 1)
    at = 0
    for number, group in enumerate(current.groups):
        slots = slice(group[0].slot, group[-1].slot + 1)
        length = max(segment.end for segment in group)
        keys, values = key[slots, :, :length], value[slots, :, :length]
        mask = current.mask(number, sliding_window, query.device)
        if group[0].count == 1:
            last = at + len(group)
            grouped = tokens[at:last].reshape(len(group), num_key_heads, -1, size)
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
            output[at:last] = attended.reshape(len(group), num_heads, -1)
        else:
            last = at + group[0].count
            attended = scaled_dot_product_attention(
                query[:, :, at:last],
                keys,
                values,
                attn_mask=mask,
                scale=scaling,
                enable_gqa=num_heads != num_key_heads,
            )
            output[at:last] = attended[0].transpose(0, 1)
        at = last
    return output.unsqueeze(0), None


def _check_plain(module: torch.nn.Module, attention_mask: Tensor | None, further: Mapping[str, Any]) -> None:
    """Refuse what would change the result, under whatever name it is handed over."""
    names = [name for name, value in further.items() if isinstance(value, Tensor) and name not in _KNOWN_TENSORS]
    if attention_mask is not None:
        names.append("a mask of its own")
    if further.get("softcap") is not None:
        names.append("softcap")
    if names:
        raise UnsupportedAttentionError(f"its attention has {', '.join(names)}")
    is_causal = further.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedAttentionError("its tokens attend to later ones")


def _slides(module: torch.nn.Module, max_len: int) -> bool:
    """Whether a layer's config says that it sees a window of less than `max_len` tokens."""
    config: Any = getattr(module, "config", None)
    window = getattr(config, "sliding_window", None)
    if not window or window >= max_len or not getattr(config, "use_sliding_window", True):
        return False
    kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    return kinds is None or index is None or kinds[index] == "sliding_attention"
