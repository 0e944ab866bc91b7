"""What a base must be like to be trained here. Found out from its config and the headers of its weight files."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from data_prep.errors import ConfigError, ModelError
from ray_apps.model_dir import tensor_names
from ray_apps.models import check_causal_lm
from ray_apps.train.adapters import check_targets
from ray_apps.train.attention import PER_DOCUMENT, register
from ray_apps.train.config import TrainConfig
from ray_apps.train.probes import changes_logits, mixes_chats


def check_base(config: TrainConfig, directory: Path, context_length: int) -> None:
    """Refuse a base in `directory` that could be trained wrongly, or not at all, or not be exported.

    Raises:
        ModelError: the files are not those of a model, or of one that is built or stored otherwise.
        ConfigError: rows are longer than the model attends to, or it lacks a layer that `lora` names.
    """
    model = _without_weights(config, directory)
    _check_structure(config.model, model)
    _check_names(config.model, model, tensor_names(directory))
    _check_reach(config.model, model.config.get_text_config(), context_length)
    if config.lora is not None:
        check_targets(model, config.lora)
    _check_behaviour(config.model, model)


def _check_structure(name: str, model: PreTrainedModel) -> None:
    base: Any = model.base_model
    if not hasattr(base, "layers") or not hasattr(model, "lm_head"):
        raise ModelError(
            f"model {name!r}: a {type(model).__name__} cannot be trained here: it has no decoder layers called "
            "'layers' under an output layer called 'lm_head', as Llama, Mistral, Qwen and their kin have"
        )


def _without_weights(config: TrainConfig, directory: Path) -> PreTrainedModel:
    """The base with the attention that it will have, which not every architecture can be given."""
    register()
    attention = {} if config.attention == "flash_attention_2" else {"attn_implementation": PER_DOCUMENT}
    return check_causal_lm(directory, **attention)


def _check_behaviour(name: str, model: PreTrainedModel) -> None:
    kind = type(model).__name__
    settings: Any = model.config.get_text_config()
    if changes_logits(model) or getattr(settings, "attn_logit_softcapping", None):
        raise ModelError(
            f"model {name!r}: a {kind} cannot be trained here: it scales or caps its logits, and the loss would not be "
            "its own"
        )
    if how := mixes_chats(model):
        raise ModelError(
            f"model {name!r}: a {kind} cannot be trained here: its layers {how}, and packed chats could see each other"
        )


def _check_names(name: str, model: PreTrainedModel, stored: set[str]) -> None:
    """Every weight must be stored under its own name, or the export could not put the trained one in its place."""
    names: dict[int, list[str]] = {}
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(parameter_name)
    if missing := sorted(aliases[0] for aliases in names.values() if stored.isdisjoint(aliases)):
        raise ModelError(
            f"model {name!r}: a {type(model).__name__} stored in this way cannot be trained here: its files have "
            f"another name for {len(missing)} weights, {missing[0]} for one"
        )


def _check_reach(name: str, settings: Any, context_length: int) -> None:
    reaches = {
        "tokens that train.model {!r} can attend to": getattr(settings, "max_position_embeddings", None),
        "tokens of the sliding window of train.model {!r}": _sliding_window(settings),
    }
    for what, most in reaches.items():
        if most is not None and context_length > most:
            raise ConfigError(f"data.context_length: {context_length} is more than the {most} {what.format(name)}")


def _sliding_window(settings: Any) -> int | None:
    """Tokens a layer looks back at, if any layer has such a limit."""
    window: int | None = getattr(settings, "sliding_window", None)
    kinds = getattr(settings, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None
