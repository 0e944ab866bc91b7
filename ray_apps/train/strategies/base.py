"""What the loop asks of a strategy."""

from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from ray_apps.train.data import Batch


class Strategy(Protocol):
    """Spreads a model, its gradients and its optimiser over the processes of a group."""

    def wrap(self, model: PreTrainedModel) -> None:
        """Take the model over. Called once, on every rank."""

    def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
        """Add the gradients of `scale` × the batch's summed loss; returns that loss, unscaled, on this rank.

        Gradients are averaged over ranks: `scale` carries the world size. `last`: the optimiser steps after this one.
        """

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """The batch's summed loss on this rank, without gradients and dropout. Every rank must call it."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the norm before clipping, the same on every rank."""

    def state(self) -> dict[str, Any]:
        """Model and optimiser as torch.distributed.checkpoint saves them: sharded tensors that are the live ones.

        The keys do not depend on the world size. Every rank must call it.
        """

    def take_over(self, state: dict[str, Any]) -> None:
        """Go on from `state()`, into which a checkpoint has been read. Every rank must call it."""
