"""A model directory on vLLM: what it is started with."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from data_prep.errors import ConfigError, ModelError
from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.language import read_language
from ray_apps.engine.native.adapters import check_adapter
from ray_apps.engine.native.loading import choose_max_model_len
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.vllm.engine import Gauge, VllmEngine
from ray_apps.engine.vllm.orphans import OWNER
from ray_apps.machine import free_memory
from ray_apps.model_dir import local_model_dir, weight_files
from ray_apps.models import DTYPES, check_causal_lm

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CPU_BLOCK = 128
"""Tokens whose keys and values vLLM keeps together on a CPU."""
_SHARE = 0.8
"""Of the memory that is free beside the weights, for keys and values."""


def load_engine(model: str, options: EngineOptions) -> VllmEngine:
    """Start vLLM on `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: the model cannot be used, or vLLM does not start on it.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    size = options.tensor_parallel_size
    check_device(options.device)
    directory = local_model_dir(model)
    outline = check_causal_lm(directory)
    tokenizer = load_tokenizer(str(directory))
    language = read_language(tokenizer, outline.config, outline.generation_config)
    length = choose_max_model_len(outline.config, options.max_model_len)
    chosen = DTYPES.get(options.dtype, outline.dtype)
    fields = {
        "model": str(directory),
        "dtype": str(chosen).removeprefix("torch."),
        "max_model_len": length,
        "max_num_seqs": options.max_num_seqs,
        "max_logprobs": -1,  # how many may be asked for is the API's to say
        "seed": secrets.randbits(31),  # requests without a seed of their own differ from one start to the next
        "structured_outputs_config": {"backend": "guidance"},
        "disable_log_stats": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        **_parallel(outline, size),
        **_lora(options.adapters, options.max_loaded_adapters, outline),
    }
    if current_platform.is_cpu():
        share_cores(options.threads, size)
        longest = cache_bytes(outline.config.get_text_config(), chosen.itemsize, length)
        fields["kv_cache_memory_bytes"] = room_for(longest, options.max_num_seqs, directory) // size
    gauge = Gauge()
    llm = _start(directory, {**fields, **check_engine_args(options.engine_args, fields)}, gauge)
    return VllmEngine(llm, language, gauge, max_model_len=length, adapters=options.adapters)


def check_device(device: str) -> None:
    """Raise ConfigError unless this build of vLLM runs on `device`."""
    own = str(current_platform.device_type)
    if device not in ("auto", own):
        raise ConfigError(f"args.device: {device!r} is not valid; this build of vLLM runs on {own!r}")


def check_engine_args(given: Mapping[str, Any], taken: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given`, if those are arguments of vLLM that no other field sets.

    Raises:
        ConfigError: naming one that is not.
    """
    valid = set(AsyncEngineArgs.__dataclass_fields__) - {*taken} | {"kv_cache_memory_bytes"}
    for name in given:
        if name not in valid:
            reason = "is set by other fields" if name in taken else "is no argument of vLLM's AsyncEngineArgs"
            raise ConfigError(f"args.engine_args.{name}: {reason}")
    return given


def _start(directory: Path, fields: Mapping[str, Any], gauge: Gauge) -> AsyncLLM:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ[OWNER] = str(os.getpid())
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**fields), stat_loggers=[lambda *_: gauge])
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")
        text = reason[2].strip().partition("\n")[0] if "validation error" in reason[0] else reason[0]
        raise ModelError(f"model {str(directory)!r}: vLLM does not start on it: {text.strip()}") from None


def _parallel(outline: PreTrainedModel, size: int) -> dict[str, Any]:
    """Its own tensor parallelism: processes on a CPU, actors in the replica's placement group on GPUs."""
    if size == 1:
        return {}
    config = outline.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if config.num_attention_heads % size or (heads % size and size % heads):
        raise ConfigError(
            f"args.tensor_parallel_size: {size} does not divide the model's {config.num_attention_heads} attention "
            f"heads and {heads} heads of keys and values"
        )
    executor = "mp" if current_platform.is_cpu() else "ray"
    return {"tensor_parallel_size": size, "distributed_executor_backend": executor}


def _lora(adapters: Mapping[str, str], most: int, outline: PreTrainedModel) -> dict[str, Any]:
    if not adapters:
        return {}
    for name, directory in adapters.items():
        check_adapter(name, Path(directory), outline)
    rank = max(map(adapter_rank, adapters.values()))
    fitting = [size for size in _LORA_RANKS if size >= rank]
    if not fitting:
        raise ConfigError(f"args.adapters: rank {rank} is not valid; vLLM takes up to {_LORA_RANKS[-1]}")
    # On a CPU vLLM sends requests without an adapter through its last place for one: that stays empty.
    places = len(adapters) + 1 if current_platform.is_cpu() else min(most, len(adapters))
    return {"enable_lora": True, "max_loras": places, "max_lora_rank": fitting[0]}


def adapter_rank(directory: str) -> int:
    """The rank of a LoRA adapter that has been checked."""
    return int(json.loads((Path(directory) / "adapter_config.json").read_text())["r"])


def share_cores(num_threads: int, tensor_parallel_size: int) -> None:
    """Give each of vLLM's workers on a CPU its share of the replica's threads.

    They are bound to no core, since other replicas of this machine would be bound to the same ones.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, num_threads // tensor_parallel_size))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def cache_bytes(config: Any, itemsize: int, max_model_len: int) -> int:
    """Bytes of the keys and values of a request at its longest, in whole blocks."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens: int = (max_model_len // _CPU_BLOCK + 1) * _CPU_BLOCK
    return tokens * 2 * int(config.num_hidden_layers * heads * size * itemsize)


def room_for(longest: int, max_num_seqs: int, directory: Path) -> int:
    """Bytes for keys and values of that many requests of `longest` bytes each, or as many as memory has room for.

    Raises:
        ConfigError: there is no room for two, of which vLLM keeps a part to itself.
    """
    weights = sum(path.stat().st_size for path in weight_files(directory))
    room = int(_SHARE * (free_memory(torch.device("cpu")) - weights))
    if room < 2 * longest:
        raise ConfigError(
            f"args.max_model_len: keys and values of one request take {longest / 1e9:.1f} GB; there are "
            f"{max(room, 0) / 1e9:.1f} GB, expected two times as much as one takes"
        )
    return min(room, (max_num_seqs + 1) * longest)
