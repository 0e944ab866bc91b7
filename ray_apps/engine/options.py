"""How an engine is built: on what, and for how much at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_apps.machine import usable_cpus

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["int8", "nf4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """What engines of all kinds are told, and some of them alone."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    """Of the weights; `auto` keeps that of the files."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; None: as many as the model reads."""
    num_threads: int | None = None
    """CPU threads of one operation; None: every core, or a shard's share of them."""
    max_num_seqs: int = 16
    """Requests worked on at a time; further ones wait."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Directories of LoRA adapters by the names under which the model is asked through them."""
    max_loaded_adapters: int = 8
    """Adapters that are held at a time."""
    tensor_parallel_size: int = 1
    """Devices that divide the model among them."""
    quantize: Quantization | None = None
    """Weights quantised by bitsandbytes as they are loaded, by the native engine."""
    device_map: Literal["auto"] | None = None
    """`auto`: the native engine spreads layers over the GPUs there are."""
    max_memory: Mapping[Any, str] | None = None
    """What `device_map` may put on each device, as accelerate takes it."""
    shards_are_actors: bool = False
    """The native engine's shards are actors of Ray in the placement group that this process is in, and no processes of
    this machine."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's `AsyncEngineArgs`, for that engine."""

    @property
    def threads(self) -> int:
        """CPU threads of one operation."""
        return self.num_threads or usable_cpus()

    @property
    def threads_of_a_shard(self) -> int:
        """The same where shards share the machine."""
        return self.num_threads or max(1, usable_cpus() // self.tensor_parallel_size)
