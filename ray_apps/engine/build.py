"""Choosing and building an engine. Nothing heavy is imported before it is chosen."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from data_prep.errors import ConfigError
from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import Engine
from ray_apps.machine import count_gpus, usable_cpus

EngineName = Literal["auto", "native", "vllm", "fake"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["int8", "nf4"]


def build_engine(
    name: EngineName,
    model: str,
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: int | None = None,
    num_threads: int | None = None,
    max_num_seqs: int = 16,
    adapters: Mapping[str, str] | None = None,
    max_loaded_adapters: int = 8,
    quantize: Quantization | None = None,
    device_map: Literal["auto"] | None = None,
    max_memory: Mapping[Any, str] | None = None,
    tensor_parallel_size: int = 1,
    shards_are_actors: bool = False,
    engine_args: Mapping[str, Any] | None = None,
) -> Engine:
    """Build the engine called `name` for `model`; `auto` is vLLM on a GPU where it is installed, else the native one.

    `max_model_len` None means as long as the model reads. `num_threads` bounds the CPU threads of one operation; None
    means every core. `max_num_seqs`: requests worked on at a time; further ones wait. `adapters`: directories by the
    names under which the model is asked through them, `max_loaded_adapters` of which are held at a time.
    `tensor_parallel_size`: devices that divide the model among them. `engine_args`: further arguments of vLLM's, for
    that engine. `quantize`, `device_map`, `max_memory` and `shards_are_actors`: as `build_native` takes them. The fake
    engine takes no model, and any adapter.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    if name == "fake":
        return FakeEngine(max_model_len=max_model_len or 4096, adapters=adapters or ())
    if choose_engine(name, device) == "vllm":
        if quantize or device_map or max_memory:
            raise ConfigError("args.quantize, device_map and max_memory: are the native engine's; vLLM has engine_args")
        return _build_vllm(
            model,
            device=device,
            dtype=dtype,
            max_model_len=max_model_len,
            num_threads=num_threads or usable_cpus(),
            max_num_seqs=max_num_seqs,
            adapters=adapters or {},
            max_loaded_adapters=max_loaded_adapters,
            tensor_parallel_size=tensor_parallel_size,
            engine_args=engine_args,
        )
    if engine_args:
        raise ConfigError("args.engine_args: are those of vLLM; the native engine takes none")
    from ray_apps.engine.native.build import build_native

    return build_native(
        model,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        num_threads=num_threads or max(1, usable_cpus() // tensor_parallel_size),
        max_num_seqs=max_num_seqs,
        adapters=adapters or {},
        max_loaded_adapters=max_loaded_adapters,
        quantize=quantize,
        device_map=device_map,
        max_memory=max_memory,
        tensor_parallel_size=tensor_parallel_size,
        shards_are_actors=shards_are_actors,
    )


def choose_engine(name: EngineName, device: Device) -> EngineName:
    """`name`, or the engine that `auto` stands for on `device`."""
    if name != "auto":
        return name
    return "vllm" if is_vllm_installed() and _uses_gpu(device) else "native"


def is_vllm_installed() -> bool:
    """Whether there is a package `vllm`; it is not imported."""
    return find_spec("vllm") is not None


def _uses_gpu(device: Device) -> bool:
    return device == "cuda" or (device == "auto" and count_gpus() > 0)


def _build_vllm(model: str, **options: Any) -> Engine:
    if not is_vllm_installed():
        raise ConfigError(
            "args.engine: 'vllm' is not valid, because vLLM is not installed; run `pip install -e '.[vllm]'`, or "
            "set 'auto' or 'native'"
        )
    from ray_apps.engine.vllm.loading import load_engine

    return load_engine(model, **options)
