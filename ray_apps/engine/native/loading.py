"""A model directory as everything the native engine needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from data_prep.errors import ConfigError, ModelError
from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.language import Language, read_language
from ray_apps.engine.native.attention import check_supported
from ray_apps.model_dir import local_model_dir
from ray_apps.models import choose_device, load_causal_lm

BITSANDBYTES = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    ),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its language, and how many tokens of prompt and answer it takes together."""

    model: PreTrainedModel
    language: Language
    max_model_len: int


def load_model(
    model: str,
    *,
    device: str,
    dtype: str,
    max_model_len: int | None,
    quantize: str | None = None,
    device_map: str | None = None,
    max_memory: Mapping[int | str, str] | None = None,
    tensor_parallel_size: int = 1,
) -> LoadedModel:
    """Load `model` (a directory, an `s3://` path or a hub id) for inference.

    `quantize`: `int8` or `nf4`, by bitsandbytes. `device_map` `auto`: layers are spread over the GPUs that this process
    sees, each of which takes up to `max_memory`. `tensor_parallel_size`: processes of which this is one, in a process
    group already; each gets its share.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it cannot be used in this way; naming the field.
    """
    directory = local_model_dir(model)
    tokenizer = load_tokenizer(str(directory))
    config = read_config(directory)
    check_supported(config)
    length = choose_max_model_len(config, within_first_training(config, max_model_len))
    options = placement(config, device, quantize, device_map, max_memory, tensor_parallel_size=tensor_parallel_size)
    causal_lm = load_causal_lm(directory, dtype=dtype, device=device, **options).eval()
    language = read_language(tokenizer, causal_lm.config, causal_lm.generation_config)
    return LoadedModel(causal_lm, language, length)


def read_config(directory: Path) -> PreTrainedConfig:
    """The config of the model in `directory`.

    Raises:
        ModelError: it is none.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"model {str(directory)!r}: config.json: {str(error).strip().splitlines()[0]}") from None
    return config


def placement(
    config: PreTrainedConfig,
    device: str,
    quantize: str | None,
    device_map: str | None,
    max_memory: Mapping[int | str, str] | None,
    *,
    tensor_parallel_size: int,
) -> dict[str, Any]:
    """What transformers is told about where weights go and in which form, beside their type.

    Raises:
        ConfigError: the fields do not go together, or not with the model or the machine.
    """
    written = getattr(config, "quantization_config", None)
    is_quantized = bool(quantize or written)
    if quantize and written:
        raise ConfigError(f"args.quantize: {quantize!r} is not valid; the model's weights are quantised already")
    if tensor_parallel_size > 1:
        if is_quantized:
            raise ConfigError(
                "args.tensor_parallel_size: weights of bitsandbytes cannot be divided; use device_map: auto"
            )
        if device_map:
            raise ConfigError("args.device_map: cannot be set together with tensor_parallel_size")
        return {"distributed_config": DistributedConfig(tp_size=tensor_parallel_size)}
    options: dict[str, Any] = {}
    if quantize:
        options["quantization_config"] = BITSANDBYTES[quantize]
    if device_map:
        num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if num_gpus < 2:
            raise ConfigError(f"args.device_map: {device_map!r} is for several GPUs; here are {num_gpus}")
        return {**options, "device_map": device_map, "max_memory": dict(max_memory) if max_memory else None}
    return {**options, "device_map": {"": choose_device(device)}} if is_quantized else {}


def choose_max_model_len(config: Any, wanted: int | None) -> int:
    """`wanted` tokens, or as many as the model's positions allow.

    Raises:
        ConfigError: the model reads fewer, or does not say how many.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None and wanted is None:
        raise ConfigError("args.max_model_len: is required, because the model's config does not say how long it reads")
    if limit is not None and wanted is not None and wanted > limit:
        raise ConfigError(f"args.max_model_len: {wanted} is not valid; the model reads at most {limit} tokens")
    return int(wanted or limit or 0)


def within_first_training(config: Any, wanted: int | None) -> int | None:
    """`wanted` tokens, or of a model with LongRoPE (Ding et al. 2024) as many as it was first trained on.

    Beyond these it has other factors, and in transformers takes them for all that is in a pass: one long chat would
    change everybody's answers.

    Raises:
        ConfigError: more are wanted of such a model.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    limit = min((length for length in lengths if length), default=None)
    if limit is None or limit >= (wanted or text.max_position_embeddings):
        return wanted
    if wanted is None:
        return int(limit)
    raise ConfigError(
        f"args.max_model_len: {wanted} is not valid; the native engine reads at most {limit} tokens with a model of "
        "LongRoPE; args.engine: vllm reads more"
    )
