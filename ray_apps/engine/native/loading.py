"""A model directory as everything the native engine needs."""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.errors import ConfigError
from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.detokenize import Vocabulary, read_vocabulary
from ray_apps.model_dir import local_model_dir
from ray_apps.models import load_causal_lm


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and how its answers begin and end."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    max_model_len: int
    end_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    answer_opens_with_space: bool


def load_model(model: str, *, device: str, dtype: str, max_model_len: int | None) -> LoadedModel:
    """Load `model` (a directory, an `s3://` path or a hub id) for inference.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: `max_model_len` is more than the model was made for, or it is needed and not given.
    """
    directory = local_model_dir(model)
    tokenizer = load_tokenizer(str(directory))
    causal_lm = load_causal_lm(directory, dtype=dtype, device=device).eval()
    return LoadedModel(
        model=causal_lm,
        tokenizer=tokenizer,
        vocabulary=read_vocabulary(tokenizer.backend_tokenizer),
        max_model_len=choose_max_model_len(causal_lm.config, max_model_len),
        end_ids=end_token_ids(causal_lm.generation_config, tokenizer),
        stop_strings=_as_tuple(getattr(causal_lm.generation_config, "stop_strings", None)),
        answer_opens_with_space=answer_opens_with_space(tokenizer),
    )


def choose_max_model_len(config: Any, wanted: int | None) -> int:
    """`wanted` tokens, or as many as the model's positions allow."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None and wanted is None:
        raise ConfigError("args.max_model_len: is required, because the model's config does not say how long it reads")
    if limit is not None and wanted is not None and wanted > limit:
        raise ConfigError(f"args.max_model_len: {wanted} is not valid; the model reads at most {limit} tokens")
    return int(wanted or limit or 0)


def end_token_ids(generation_config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: those of the generation config, and the tokenizer's end token."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = {*_as_tuple(named), *_as_tuple(tokenizer.eos_token_id)}
    return frozenset(int(index) for index in ids)


def answer_opens_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes a space before an assistant's text, so that it is not part of the answer."""
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    except (TemplateError, ValueError):  # No template, or one that knows no such chat.
        return False
    return str(whole).startswith(f"{prompt} a")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)
