"""The config of a model: from its directory or its hub page; of well-known models from a table, without network."""

from typing import Any

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from data_prep.errors import ModelError
from data_prep.storage import local_model


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32_000,
        "dtype": "float16",
        **others,
    }


LLAMA_7B = _llama(4096, 11008, 32, 32, max_position_embeddings=2048)

WELL_KNOWN = {
    "huggyllama/llama-7b": LLAMA_7B,
    "huggyllama/llama-13b": _llama(5120, 13824, 40, 40, max_position_embeddings=2048),
    "huggyllama/llama-30b": _llama(6656, 17920, 60, 52, max_position_embeddings=2048),
    "huggyllama/llama-65b": _llama(8192, 22016, 80, 64, max_position_embeddings=2048),
    "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, max_position_embeddings=4096),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 13824, 40, 40, max_position_embeddings=4096),
    "meta-llama/Llama-2-70b-hf": _llama(8192, 28672, 80, 64, num_key_value_heads=8, max_position_embeddings=4096),
    "meta-llama/Llama-3.1-8B": _llama(
        4096,
        14336,
        32,
        32,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=131_072,
        dtype="bfloat16",
    ),
    "lmsys/vicuna-7b-v1.5": _llama(4096, 11008, 32, 32, max_position_embeddings=4096),
    "lmsys/vicuna-13b-v1.5": _llama(5120, 13824, 40, 40, max_position_embeddings=4096),
    "HuggingFaceTB/SmolLM2-135M": _llama(
        576,
        1536,
        30,
        9,
        num_key_value_heads=3,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
}
"""By hub id: what decides memory and time, as their `config.json` has it (Touvron et al. 2023 for the sizes)."""


def find_model_config(model: str) -> tuple[PreTrainedConfig, str]:
    """The config of `model`, and in words where it came from. No weights are read or fetched.

    Raises:
        ModelError: it is neither in the table, nor in a directory, nor to be had from the hub; or it is not a config.
    """
    if model in WELL_KNOWN:
        return LlamaConfig(**WELL_KNOWN[model]), "the table of well-known models"
    directory = local_model(model, ("config.json",))
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {model!r}: config.json: {str(error).strip().splitlines()[0]}") from None
    return config, f"{directory / 'config.json'}"
