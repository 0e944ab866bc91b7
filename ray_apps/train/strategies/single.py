"""One process that holds everything, for what cannot be spread: bitsandbytes' 4-bit weights and 8-bit optimiser."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ray_apps.train.config import TrainConfig
from ray_apps.train.data import Batch
from ray_apps.train.objective import WeightedLoss
from ray_apps.train.optimizer import begin_state, build_optimizer
from ray_apps.train.strategies.prepare import with_loss


class SingleStrategy:
    """fp32 trained weights, the frozen ones as they were loaded; the passes run under autocast."""

    module: WeightedLoss
    optimizer: torch.optim.Optimizer

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

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
            loss: torch.Tensor = self.module(batch.to(self.device))
        return loss

    def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
        """See `Strategy`."""
        loss = self._loss(batch)
        (loss * scale).backward()
        return loss.detach()

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Strategy`."""
        self.module.eval()
        with torch.no_grad():
            loss = self._loss(batch)
        self.module.train()
        return loss

    def step(self, learning_rate: float) -> float:
        """See `Strategy`."""
        norm = nn.utils.clip_grad_norm_(self._trained().values(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

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
