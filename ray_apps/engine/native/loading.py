"""A model directory as everything the native engine needs."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from data_prep.errors import ConfigError
from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.language import Language, read_language
from ray_apps.model_dir import local_model_dir
from ray_apps.models import load_causal_lm


@dataclass(frozen=True)
class LoadedModel:
    """A model with its language, and how many tokens of prompt and answer it takes together."""

    model: PreTrainedModel
    language: Language
    max_model_len: int


def load_model(model: str, *, device: str, dtype: str, max_model_len: int | None) -> LoadedModel:
    """Load `model` (a directory, an `s3://` path or a hub id) for inference.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: `max_model_len` is more than the model was made for, or it is needed and not given.
    """
    directory = local_model_dir(model)
    tokenizer = load_tokenizer(str(directory))
    causal_lm = load_causal_lm(directory, dtype=dtype, device=device).eval()
    language = read_language(tokenizer, causal_lm.config, causal_lm.generation_config)
    return LoadedModel(causal_lm, language, choose_max_model_len(causal_lm.config, max_model_len))


def choose_max_model_len(config: Any, wanted: int | None) -> int:
    """`wanted` tokens, or as many as the model's positions allow."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None and wanted is None:
        raise ConfigError("args.max_model_len: is required, because the model's config does not say how long it reads")
    if limit is not None and wanted is not None and wanted > limit:
        raise ConfigError(f"args.max_model_len: {wanted} is not valid; the model reads at most {limit} tokens")
    return int(wanted or limit or 0)
