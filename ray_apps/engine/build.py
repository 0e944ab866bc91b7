"""Choosing and building an engine. Nothing heavy is imported before it is chosen."""

from collections.abc import Mapping
from typing import Literal

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import Engine
from ray_apps.machine import usable_cpus

EngineName = Literal["auto", "native", "fake"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float32"]


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
) -> Engine:
    """Build the engine called `name` for `model`; `auto` is the native one.

    `max_model_len` None means as long as the model reads. `num_threads` bounds the CPU threads of one operation; None
    means every core. `max_num_seqs`: requests worked on at a time; further ones wait. `adapters`: directories by the
    names under which the model is asked through them, `max_loaded_adapters` of which are held at a time. The fake
    engine takes no model, and any adapter.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it cannot be used in this way; the message names the field.
    """
    if name == "fake":
        return FakeEngine(max_model_len=max_model_len or 4096, adapters=adapters or ())
    import torch

    from ray_apps.engine.native.engine import NativeEngine
    from ray_apps.engine.native.loading import load_model

    torch.set_num_threads(num_threads or usable_cpus())
    loaded = load_model(model, device=device, dtype=dtype, max_model_len=max_model_len)
    return NativeEngine(loaded, max_num_seqs=max_num_seqs, adapters=adapters, max_loaded_adapters=max_loaded_adapters)
