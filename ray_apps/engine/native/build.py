"""Building the native engine: the model in this process, or divided among several."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from data_prep.errors import ConfigError
from ray_apps.engine.native.attention import check_supported
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import LoadedModel, load_model, placement, read_config
from ray_apps.engine.native.packing import pack
from ray_apps.engine.native.shards import ProcessShards, StartShards, load_sharded
from ray_apps.model_dir import local_model_dir
from ray_apps.models import choose_device


def build_native(
    model: str,
    *,
    device: str,
    dtype: str,
    max_model_len: int | None,
    num_threads: int,
    max_num_seqs: int,
    adapters: Mapping[str, str],
    max_loaded_adapters: int,
    quantize: str | None,
    device_map: str | None,
    max_memory: Mapping[int | str, str] | None,
    tensor_parallel_size: int,
    shards_are_actors: bool,
) -> NativeEngine:
    """The native engine for `model`; see `build_engine`, and `load_model` for quantising and spreading it.

    The `tensor_parallel_size` processes that divide it among them are others of this machine, or actors of Ray in the
    placement group that this process is in. Each has `num_threads`.

    Raises:
        ModelError: the model, or an adapter, cannot be used.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    torch.set_num_threads(num_threads)
    load = partial(
        load_model,
        model,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        quantize=quantize,
        device_map=device_map,
        max_memory=max_memory,
        tensor_parallel_size=tensor_parallel_size,
    )
    limits: dict[str, Any] = {"max_num_seqs": max_num_seqs, "max_loaded_adapters": max_loaded_adapters}
    if tensor_parallel_size == 1:
        # OpenMP gives each thread that computes helpers of its own, and once they are more than the cores all of them
        # sleep between two products. So the thread that loads ends before that which infers begins.
        with ThreadPoolExecutor(1) as loading:
            loaded = loading.submit(_load_packed, load).result()
        return NativeEngine(loaded, adapters=adapters, **limits)
    if adapters:
        raise ConfigError("args.adapters: cannot be set together with tensor_parallel_size")
    config = read_config(local_model_dir(model))  # looked at before other processes start
    check_supported(config)
    placement(config, device, quantize, device_map, max_memory, tensor_parallel_size=tensor_parallel_size)
    kind = choose_device(device).type
    start = _starter(shards_are_actors, kind, num_threads)
    loaded, make_model = load_sharded(load, model, tensor_parallel_size, start, kind)
    return NativeEngine(loaded, make_model=make_model, **limits)


def _load_packed(load: Callable[[], LoadedModel]) -> LoadedModel:
    loaded = load()
    pack(loaded.model)
    return loaded


def _starter(shards_are_actors: bool, device: str, num_threads: int) -> StartShards:
    if shards_are_actors:
        from ray_apps.engine.sharding import ActorShards

        return partial(ActorShards, device=device, num_threads=num_threads)
    return partial(ProcessShards, device=device, num_threads=num_threads)
