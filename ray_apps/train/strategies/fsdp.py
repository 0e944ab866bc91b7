"""Fully sharded data parallelism: PyTorch FSDP2, one group per decoder layer (Zhao et al. 2023)."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from ray_apps.train.optimizer import build_optimizer
from ray_apps.train.strategies.module import ModuleStrategy
from ray_apps.train.strategies.prepare import cast_parameters, compute_dtype, decoder_layers, with_loss

# Frozen weights are the base's own: a LoRA checkpoint holds the adapters alone.
TRAINABLE_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


class FsdpStrategy(ModuleStrategy):
    """fp32 master weights in shards; each layer is gathered in the compute type just before it runs."""

    def wrap(self, model: PreTrainedModel) -> None:
        """Shard layer by layer: at most one layer is whole in fp32 at any time. Frozen weights never are in fp32."""
        self.module = with_loss(model, self.config)
        options = self._options()
        types = {"trained": torch.float32, "frozen": compute_dtype(self.config)}
        for layer in decoder_layers(model):
            cast_parameters(layer, **types)
            fully_shard(layer, reshard_after_forward=self.config.fsdp.reshard_after_forward, **options)
        cast_parameters(self.module, **types)
        fully_shard(self.module, reshard_after_forward=False, **options)
        self.module.train()
        self.optimizer = build_optimizer(self.module, self.config)

    def _options(self) -> dict[str, Any]:
        bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return {
            "mesh": init_device_mesh(self.device.type, (dist.get_world_size(),)),
            "mp_policy": bf16 if self.config.precision == "bf16" else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy() if self.config.fsdp.cpu_offload else OffloadPolicy(),
        }

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {
            "model": get_model_state_dict(self.module.model, options=TRAINABLE_ONLY),
            "optimizer": get_optimizer_state_dict(self.module.model, self.optimizer, options=TRAINABLE_ONLY),
        }

    def take_over(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        set_model_state_dict(self.module.model, state["model"], options=TRAINABLE_ONLY)
        set_optimizer_state_dict(self.module.model, self.optimizer, state["optimizer"], options=TRAINABLE_ONLY)
