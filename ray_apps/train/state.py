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
        return {"step": torch.tensor(self.step), f"rng_{rank}": _random_state()}

    @staticmethod
    def from_saved(saved: dict[str, Any], rank: int) -> "TrainState":
        """Take over the step and this rank's random state."""
        _set_random_state(saved[f"rng_{rank}"])
        return TrainState(step=int(saved["step"]))


def seed_rank(seed: int, rank: int) -> None:
    """Give this rank a random state of its own (dropout is the only thing that draws from it)."""
    torch.manual_seed(seed * 1_000_003 + rank)


def _random_state() -> torch.Tensor:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _set_random_state(state: torch.Tensor) -> None:
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if torch.cuda.is_available() and state.numel() > size:
        torch.cuda.set_rng_state(state[size:])
