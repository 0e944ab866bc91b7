"""Packed rows by global index: which rows make up a step depends on the seed and the step alone.

Any number of workers therefore sees the same batches in the same order, and a resumed run goes on where it stopped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_prep.encode import IGNORE_INDEX, mask_untrained
from data_prep.pack import Row, position_ids, rows_to_table, table_to_rows


@dataclass(frozen=True)
class RowOrder:
    """The rows of each optimiser step. Every epoch is a new permutation; its incomplete last batch is left out."""

    num_rows: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.num_rows // self.global_batch_size

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Row indices of optimiser step `step`, counted from 0. int64 `[global_batch_size]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return _permutation(self.num_rows, self.seed, epoch)[start : start + self.global_batch_size]

    def micro_batches(self, step: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int]]:
        """The part of `batch(step)` that `rank` computes, one list per forward pass.

        Every rank gets equally many lists, for each pass gathers weights from all ranks; where the batch does not
        divide, some are empty.
        """
        mine = self.batch(step)[rank::world_size].tolist()
        most = math.ceil(self.global_batch_size / world_size)
        return [mine[start : start + micro_batch_size] for start in range(0, most, micro_batch_size)]


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


class RowStore:
    """The rows of one part of a dataset, by index."""

    def __init__(self, directory: Path) -> None:
        files = sorted(directory.glob("*.parquet"))
        tables = [pq.read_table(file) for file in files]
        self._table = pa.concat_tables(tables) if tables else rows_to_table([])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> Row:
        return next(table_to_rows(self._table.slice(index, 1)))

    @cached_property
    def target_weights(self) -> npt.NDArray[np.float64]:
        """Sum of the loss weights of each row's targets; the first token of a chat is none. float64 `[rows]`."""
        weights = self._table["weights"].combine_chunks()
        documents = self._table["document_lengths"].combine_chunks()
        values = weights.flatten().to_numpy().astype(np.float64)
        ends = np.cumsum(documents.flatten().to_numpy())
        values[np.concatenate([[0], ends[:-1]])] = 0.0
        row_ends = np.cumsum(weights.value_lengths().to_numpy())
        totals = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(np.diff(totals[np.concatenate([[0], row_ends])]))


@dataclass(frozen=True)
class Batch:
    """Rows one after another as a single sequence without padding; `tokens` is the sum of their lengths.

    `input_ids`, `targets`, `position_ids`: int64 `[1, tokens]`. `targets[i]` is the token that follows token i in its
    chat, `IGNORE_INDEX` where none is trained. `weights`: float32 `[1, tokens]`, the loss weight of each target.
    `cu_seq_lens`: int32 `[documents + 1]`, where each chat begins, and the end. `max_length`: the longest chat.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        names = ("input_ids", "targets", "weights", "position_ids", "cu_seq_lens")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def load_batch(rows: RowStore, indices: Sequence[int]) -> Batch:
    """The rows of `indices`; without any, a batch that counts for nothing, so that a rank can take part in a pass."""
    if indices:
        return collate([rows[index] for index in indices])
    nothing = collate([rows[0]])
    return replace(nothing, targets=torch.full_like(nothing.targets, IGNORE_INDEX))


def collate(rows: Sequence[Row]) -> Batch:
    """Join rows into one sequence. The first token of a chat is nobody's target."""
    lengths = [length for row in rows for length in row.document_lengths]
    input_ids = np.concatenate([row.input_ids for row in rows])
    weights = np.concatenate([row.weights for row in rows])
    ends = np.cumsum(lengths)
    labels = mask_untrained(input_ids, weights).astype(np.int64)
    targets, target_weights = np.roll(labels, -1), np.roll(weights, -1)
    targets[ends - 1], target_weights[ends - 1] = mask_untrained(input_ids[:1], np.zeros(1, np.float32))[0], 0.0
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64))[None],
        targets=torch.from_numpy(targets)[None],
        weights=torch.from_numpy(target_weights)[None],
        position_ids=torch.from_numpy(position_ids(lengths))[None],
        cu_seq_lens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        max_length=max(lengths),
    )
