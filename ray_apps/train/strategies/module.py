"""What strategies share that leave the module an ordinary one: PyTorch's own backward pass and optimiser."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ray_apps.train.config import TrainConfig
from ray_apps.train.data import Batch
from ray_apps.train.objective import WeightedLoss


class ModuleStrategy:
    """The passes and the step of a `Strategy`; a subclass wraps the model, and hands over and takes its state."""

    module: WeightedLoss
    optimizer: torch.optim.Optimizer

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

    def _loss(self, batch: Batch) -> torch.Tensor:
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
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(whole)
