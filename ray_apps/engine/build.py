"""Choosing and building an engine. Nothing heavy is imported before it is chosen."""

from importlib.util import find_spec
from typing import Literal

from data_prep.errors import ConfigError
from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.options import Device, EngineOptions
from ray_apps.engine.protocol import Engine
from ray_apps.machine import count_gpus

EngineName = Literal["auto", "native", "vllm", "fake"]

_DEFAULT = EngineOptions()


def build_engine(name: EngineName, model: str, options: EngineOptions = _DEFAULT) -> Engine:
    """Build the engine called `name` for `model`; `auto` is vLLM on a GPU where it is installed, else the native one.

    `model`: a directory, an `s3://` path or a hub id. The fake engine takes no model, and any adapter.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    if name == "fake":
        return FakeEngine(max_model_len=options.max_model_len or 4096, adapters=options.adapters)
    if choose_engine(name, options.device) == "vllm":
        return _build_vllm(model, options)
    if options.engine_args:
        raise ConfigError("args.engine_args: are those of vLLM; the native engine takes none")
    from ray_apps.engine.native.build import build_native

    return build_native(model, options)


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


def _build_vllm(model: str, options: EngineOptions) -> Engine:
    if options.quantize or options.device_map or options.max_memory:
        raise ConfigError("args.quantize, device_map and max_memory: are the native engine's; vLLM has engine_args")
    if not is_vllm_installed():
        raise ConfigError(
            "args.engine: 'vllm' is not valid, because vLLM is not installed; run `pip install -e '.[vllm]'`, or "
            "set 'auto' or 'native'"
        )
    from ray_apps.engine.vllm.loading import load_engine

    return load_engine(model, options)
