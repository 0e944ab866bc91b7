"""The loss on the rows that are held out from training."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from ray_apps.train.data import RowStore, load_batch
from ray_apps.train.strategies.base import Strategy


def held_out_loss(
    strategy: Strategy, rows: RowStore, micro_batch_size: int, on_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean cross-entropy over the trained tokens of all `rows`; the same on every rank, whatever their number.

    Every rank runs as many forward passes as the others, since each gathers weights from all of them: one that has no
    row left runs one that counts for nothing.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(rows), world_size * micro_batch_size):
        first = start + rank * micro_batch_size
        mine = list(range(first, min(first + micro_batch_size, len(rows))))
        total += strategy.evaluate(load_batch(rows, mine)).double().cpu()
        on_batch()
    whole = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(whole)
    return float(whole) / float(rows.target_weights.sum())
