"""Packing: whole chats into rows of one context length, so that no row is padded.

Best-fit decreasing (Johnson 1974) within one group of chats. Groups are cut by record order, so the rows do not depend
on how many processes made them. A row keeps the length of each chat in it: attention never crosses those boundaries
and position ids restart there.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_prep.tokenizer import EncodedChat

ROW_SCHEMA_VERSION = 1
ROW_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "document_lengths": pa.list_(pa.int32()),
        "document_ids": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One training row of `tokens` ids: chats one after another.

    `input_ids`: int32 `[tokens]`. `weights`: float32 `[tokens]`, 0 where a token is context only.
    `document_lengths`: tokens of each chat, in order. `document_ids`: where each came from.
    """

    input_ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    document_lengths: tuple[int, ...]
    document_ids: tuple[str, ...]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items over bins of `capacity`, each item whole and in exactly one bin.

    Returns the bins as sorted lists of indices into `lengths`.

    Raises:
        ValueError: an item is longer than `capacity`.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"item {index} of length {length} exceeds the capacity {capacity}")
        place = bisect_left(free, (length, -1))
        if place == len(free):
            bins.append([index])
            insort(free, (capacity - length, len(bins) - 1))
        else:
            room, chosen = free.pop(place)
            bins[chosen].append(index)
            insort(free, (room - length, chosen))
    return sorted(sorted(members) for members in bins)


def make_rows(chats: Sequence[tuple[str, EncodedChat]], context_length: int, *, pack: bool) -> list[Row]:
    """Rows of at most `context_length` tokens from `(id, chat)` pairs; without `pack` each chat is a row of its own."""
    lengths = [len(chat.input_ids) for _, chat in chats]
    bins = best_fit(lengths, context_length) if pack else [[index] for index in range(len(chats))]
    return [_join([chats[index] for index in members]) for members in bins]


def _join(chats: Sequence[tuple[str, EncodedChat]]) -> Row:
    return Row(
        input_ids=np.concatenate([chat.input_ids for _, chat in chats]),
        weights=np.concatenate([chat.weights for _, chat in chats]),
        document_lengths=tuple(len(chat.input_ids) for _, chat in chats),
        document_ids=tuple(identifier for identifier, _ in chats),
    )


def position_ids(document_lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Position of each token within its own chat. int64 `[sum of lengths]`."""
    return np.concatenate([np.arange(length, dtype=np.int64) for length in document_lengths])


def rows_to_table(rows: Sequence[Row]) -> pa.Table:
    """The rows as an Arrow table of `ROW_SCHEMA`."""
    columns = {
        "input_ids": [row.input_ids for row in rows],
        "weights": [row.weights for row in rows],
        "document_lengths": [row.document_lengths for row in rows],
        "document_ids": [row.document_ids for row in rows],
    }
    return pa.table({name: pa.array(values, ROW_SCHEMA.field(name).type) for name, values in columns.items()})


def table_to_rows(table: pa.Table) -> Iterator[Row]:
    """The rows of an Arrow table of `ROW_SCHEMA`."""
    for index in range(table.num_rows):
        yield Row(
            input_ids=table["input_ids"][index].values.to_numpy(),
            weights=table["weights"][index].values.to_numpy(),
            document_lengths=tuple(table["document_lengths"][index].as_py()),
            document_ids=tuple(table["document_ids"][index].as_py()),
        )
