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

from data_prep.encode import EncodedChat

ROW_SCHEMA_VERSION = 2
ROW_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "document_lengths": pa.list_(pa.int32()),
        "document_ids": pa.list_(pa.string()),
        "document_sources": pa.list_(pa.string()),
        "document_parts": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True, slots=True)
class Document:
    """A chat in tokens, or a part of one, and where it is from: `part` is the index of its first message."""

    id: str
    tokens: EncodedChat
    source: str = ""
    part: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One training row of `tokens` ids: chats one after another.

    `input_ids`: int32 `[tokens]`. `weights`: float32 `[tokens]`, 0 where a token is context only.
    `document_lengths`: tokens of each chat, in order. `document_ids`, `document_sources`, `document_parts`: where each
    came from.
    """

    input_ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    document_lengths: tuple[int, ...]
    document_ids: tuple[str, ...]
    document_sources: tuple[str, ...]
    document_parts: tuple[int, ...]


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


def make_rows(documents: Sequence[Document], context_length: int, *, pack: bool) -> list[Row]:
    """Rows of at most `context_length` tokens; without `pack` each document is a row of its own."""
    lengths = [len(document.tokens.input_ids) for document in documents]
    bins = best_fit(lengths, context_length) if pack else [[index] for index in range(len(documents))]
    return [_join([documents[index] for index in members]) for members in bins]


def _join(documents: Sequence[Document]) -> Row:
    return Row(
        input_ids=np.concatenate([document.tokens.input_ids for document in documents]),
        weights=np.concatenate([document.tokens.weights for document in documents]),
        document_lengths=tuple(len(document.tokens.input_ids) for document in documents),
        document_ids=tuple(document.id for document in documents),
        document_sources=tuple(document.source for document in documents),
        document_parts=tuple(document.part for document in documents),
    )


def position_ids(document_lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Position of each token within its own chat. int64 `[sum of lengths]`."""
    return np.concatenate([np.arange(length, dtype=np.int64) for length in document_lengths])


def count_rows(rows: Sequence[Row]) -> dict[str, int]:
    """Rows, conversations, tokens and trained tokens."""
    return {
        "rows": len(rows),
        "conversations": sum(len(row.document_ids) for row in rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "trained_tokens": sum(int((row.weights > 0).sum()) for row in rows),
    }


def rows_to_table(rows: Sequence[Row]) -> pa.Table:
    """The rows as an Arrow table of `ROW_SCHEMA`."""
    arrays = {field.name: pa.array([getattr(row, field.name) for row in rows], field.type) for field in ROW_SCHEMA}
    return pa.table(arrays)


def table_to_rows(table: pa.Table) -> Iterator[Row]:
    """The rows of an Arrow table of `ROW_SCHEMA`."""
    for index in range(table.num_rows):
        lengths, ids, sources, parts = (
            tuple(table[f"document_{name}"][index].as_py()) for name in ("lengths", "ids", "sources", "parts")
        )
        yield Row(
            input_ids=table["input_ids"][index].values.to_numpy(),
            weights=table["weights"][index].values.to_numpy(),
            document_lengths=lengths,
            document_ids=ids,
            document_sources=sources,
            document_parts=parts,
        )
