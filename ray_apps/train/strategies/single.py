"""One process that holds everything, for what cannot be spread: bitsandbytes' 4-bit weights and 8-bit optimiser."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ray_apps.train.data import Batch
from ray_apps.train.optimizer import begin_state, build_optimizer
from ray_apps.train.strategies.module import ModuleStrategy
from ray_apps.train.strategies.prepare import with_loss


class SingleStrategy(ModuleStrategy):
    """fp32 trained weights, the frozen ones as they were loaded; the passes run under autocast."""

    def wrap(self, model: PreTrainedModel) -> None:
        """See `Strategy`."""
        self.module = with_loss(model, self.config)
        for parameter in self._trained().values():
            parameter.data = parameter.data.float()
        self.module.to(self.device).train()
        self.optimizer = build_optimizer(self.module, self.config)
        begin_state(self.optimizer)

    def _trained(self) -> dict[str, nn.Parameter]:
        parameters = self.module.model.named_parameters()
        return {name: parameter for name, parameter in parameters if parameter.requires_grad}

    def _loss(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return super()._loss(batch)

    def state(self) -> dict[str, Any]:
        """See `Strategy`. bitsandbytes counts steps in an int, and holds its tables of code points in every state."""
        trained = self._trained()
        kept = {
            name: {key: value for key, value in self.optimizer.state[parameter].items() if not key.startswith("qmap")}
            for name, parameter in trained.items()
        }
        return {
            "model": {name: parameter.detach() for name, parameter in trained.items()},
            "optimizer": {
                "state": {
                    name: {key: torch.as_tensor(value) for key, value in values.items()}
                    for name, values in kept.items()
                }
            },
        }

    def take_over(self, state: dict[str, Any]) -> None:
        """See `Strategy`. All but bitsandbytes' counts are in place already."""
        for name, parameter in self._trained().items():
            live = self.optimizer.state[parameter]
            if isinstance(live["step"], int):
                live["step"] = int(state["optimizer"]["state"][name]["step"])
