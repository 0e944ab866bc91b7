"""What the loop asks of a strategy."""

from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from ray_apps.train.data import Batch


class Strategy(Protocol):
    """Spreads a model, its gradients and its optimiser over the processes of a group."""

    def wrap(self, model: PreTrainedModel) -> None:
        """Take the model over. Called once, on every rank."""

    def backward(self, batch: Batch, scale: float) -> torch.Tensor:
        """Add the gradients of `scale` × the batch's summed loss; returns that loss, unscaled, on this rank.

        Gradients are averaged over ranks: `scale` carries the world size.
        """

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """The batch's summed loss on this rank, without gradients and dropout. Every rank must call it."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the norm before clipping, the same on every rank."""

    def save(self, directory: Path, extra: dict[str, Any]) -> None:
        """Write this rank's shards of model, optimiser and `extra` to `directory`. Every rank must call it."""

    def load(self, directory: Path, extra: dict[str, Any]) -> dict[str, Any]:
        """Read a checkpoint back, at any world size; returns `extra` with the saved values. Every rank must call it."""
