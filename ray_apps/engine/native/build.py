"""Building the native engine: the model in this process, or divided among several."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from data_prep.errors import ConfigError
from ray_apps.engine.native.attention import check_supported
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.forward import MakeModel
from ray_apps.engine.native.loading import LoadedModel, load_model, placement, read_config
from ray_apps.engine.native.packing import pack
from ray_apps.engine.native.shards import ProcessShards, StartShards, load_sharded
from ray_apps.engine.options import EngineOptions
from ray_apps.model_dir import local_model_dir
from ray_apps.models import choose_device


def build_native(model: str, options: EngineOptions) -> NativeEngine:
    """The native engine for `model`; see `load_model` for quantising and spreading it.

    Each of the processes that divide it among them has its own threads.

    Raises:
        ModelError: the model, or an adapter, cannot be used.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    torch.set_num_threads(options.threads_of_a_shard)
    limits: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "max_loaded_adapters": options.max_loaded_adapters,
    }
    if options.tensor_parallel_size > 1:
        with _divided(model, options) as (loaded, make_model):
            return NativeEngine(loaded, make_model=make_model, **limits)
    # OpenMP gives each thread that computes helpers of its own, and once they are more than the cores all of them
    # sleep between two products. So the thread that loads ends before that which infers begins.
    with ThreadPoolExecutor(1) as loading:
        loaded = loading.submit(_load_packed, _loading(model, options)).result()
    return NativeEngine(loaded, adapters=options.adapters, **limits)


def _divided(model: str, options: EngineOptions) -> AbstractContextManager[tuple[LoadedModel, MakeModel]]:
    """The model in several processes, and what makes them do a pass together. If the block fails, they end."""
    if options.adapters:
        raise ConfigError("args.adapters: cannot be set together with tensor_parallel_size")
    size = options.tensor_parallel_size
    config = read_config(local_model_dir(model))  # looked at before other processes start
    check_supported(config)
    placement(
        config, options.device, options.quantize, options.device_map, options.max_memory, tensor_parallel_size=size
    )
    device = choose_device(options.device).type
    start = _starter(options.shards_are_actors, device, options.threads_of_a_shard)
    return load_sharded(_loading(model, options), model, size, start, device)


def _loading(model: str, options: EngineOptions) -> Callable[[], LoadedModel]:
    return partial(
        load_model,
        model,
        device=options.device,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        quantize=options.quantize,
        device_map=options.device_map,
        max_memory=options.max_memory,
        tensor_parallel_size=options.tensor_parallel_size,
    )


def _load_packed(load: Callable[[], LoadedModel]) -> LoadedModel:
    loaded = load()
    pack(loaded.model)
    return loaded


def _starter(shards_are_actors: bool, device: str, num_threads: int) -> StartShards:
    if shards_are_actors:
        from ray_apps.engine.sharding import ActorShards

        return partial(ActorShards, device=device, num_threads=num_threads)
    return partial(ProcessShards, device=device, num_threads=num_threads)
