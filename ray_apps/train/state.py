"""What a checkpoint holds besides weights and optimiser: how far the run is, and each rank's random state."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class TrainState:
    """`step`: optimiser steps done. With the seed it is the data position: the next batch is `RowOrder.batch(step)`."""

    step: int = 0

    def to_saved(self, rank: int) -> dict[str, Any]:
        """Plain tensors for a sharded checkpoint; each rank has a random state of its own."""
        return {
            "step": torch.tensor(self.step),
            **{f"{name}_{rank}": state for name, state in _random_states().items()},
        }

    @staticmethod
    def from_saved(saved: dict[str, Any], rank: int) -> "TrainState":
        """Take over the step and this rank's random states; those of a kind of device that is not here are left."""
        torch.set_rng_state(saved[f"rng_{rank}"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(saved[f"rng_cuda_{rank}"])
        return TrainState(step=int(saved["step"]))


def seed_rank(seed: int, rank: int) -> None:
    """Give this rank a random state of its own (dropout is the only thing that draws from it)."""
    torch.manual_seed(seed * 1_000_003 + rank)


def _random_states() -> dict[str, torch.Tensor]:
    """Apart for each kind of device: a run may go on with another one."""
    states = {"rng": torch.get_rng_state()}
    return {**states, "rng_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states
