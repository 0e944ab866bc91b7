"""Where DeepSpeed keeps the master weights: flat partitions, whose layout depends on stage and world size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ray_apps.train.strategies.pieces import Piece


@dataclass(frozen=True)
class Place:
    """Where this rank keeps its part of a parameter.

    The elements from `start` on of the flattened parameter, `size` of them, are those from `offset` on of the flat
    fp32 partition `flat`.
    """

    flat: torch.Tensor
    offset: int
    start: int
    size: int

    def piece(self, values: torch.Tensor, parameter: nn.Parameter) -> Piece:
        """This part of `values`, which has the layout of `flat`."""
        whole = getattr(parameter, "ds_numel", parameter.numel())
        return Piece.of(values.detach().narrow(0, self.offset, self.size), self.start, whole)


def flat_partitions(zero: Any) -> list[torch.Tensor]:
    """This rank's fp32 master weights. `zero` is DeepSpeed's optimiser, of any stage."""
    if _is_stage_3(zero):
        return list(zero.fp32_partitioned_groups_flat)
    return [flat for group in zero.optimizer.param_groups for flat in group["params"]]


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def places(zero: Any) -> Iterator[tuple[nn.Parameter, Place]]:
    """The parts of parameters that this rank keeps."""
    return _of_stage_3(zero) if _is_stage_3(zero) else _of_stages_1_and_2(zero)


def _of_stages_1_and_2(zero: Any) -> Iterator[tuple[nn.Parameter, Place]]:
    """A group of parameters is one flat tensor, cut into as many partitions as there are ranks, wherever that falls."""
    flats = flat_partitions(zero)
    for parameter in zero.param_names:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield parameter, Place(flats[mapping.param_group_index], there.start, here.start, here.numel)


def _of_stage_3(zero: Any) -> Iterator[tuple[nn.Parameter, Place]]:
    """Each parameter is cut into as many parts as there are ranks, the last one padded."""
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in parameters:
            padded = parameter.partition_numel()
            start = min(dist.get_rank() * padded, parameter.ds_numel)
            yield parameter, Place(flat, offset, start, min(padded, parameter.ds_numel - start))
            offset += padded


def refresh_weights(zero: Any) -> None:
    """Give the forward pass the master weights, as at the end of a step."""
    if not _is_stage_3(zero):
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    zero._post_step(set())
