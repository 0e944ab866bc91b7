"""Duplicates: keys of one chat, and which of the chats that share a key are left out.

Exact: the id, and the first exchange without regard to case and white space. Near: MinHash signatures (Broder 1997)
of word shingles, cut into bands (Leskovec et al., Mining of Massive Datasets, 3.4). Of the chats that share a key the
first in record order stays, whatever the parallelism.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.config import DedupSettings
from data_prep.conversation import Conversation, DropReason
from data_prep.words import words

NUM_PERMUTATIONS = 128
NUM_BANDS = 16  # of 8 values: chats of similarity 0.8 meet in one with probability 0.95, of 0.5 with 0.06
KEY_BYTES = 16
REASONS = (DropReason.DUPLICATE_ID, DropReason.DUPLICATE_EXCHANGE, DropReason.NEAR_DUPLICATE)
_SEED = 1
_POSITION_BITS = 40

KEY_SCHEMA = pa.schema(
    {
        "order": pa.int64(),
        "id": pa.binary(KEY_BYTES),
        "exchange": pa.binary(KEY_BYTES),
        "signature": pa.binary(),
    }
)
ENTRY_SCHEMA = pa.schema(
    {"key": pa.binary(KEY_BYTES), "kind": pa.int8(), "order": pa.int64(), "signature": pa.binary()}
)


class Key(NamedTuple):
    """What a chat is known by: its place, keys of 16 bytes (null where exact duplicates stay), maybe a signature."""

    order: int
    id: bytes | None
    exchange: bytes | None
    signature: bytes


def record_order(file: int, position: int) -> int:
    """A number that grows in record order: by file, then by position in it."""
    return file << _POSITION_BITS | position


def split_order(order: int) -> tuple[int, int]:
    """File and position of a record."""
    return order >> _POSITION_BITS, order & ((1 << _POSITION_BITS) - 1)


def make_key(conversation: Conversation, order: int, settings: DedupSettings) -> Key:
    """The key of one chat."""
    exchange = " ".join(" ".join(message.content for message in conversation.turns[:2]).casefold().split())
    return Key(
        order,
        _hash("id", conversation.id) if settings.exact else None,
        _hash("exchange", exchange) if settings.exact else None,
        signature(conversation, settings.shingle_words).tobytes() if settings.near is not None else b"",
    )


def _hash(kind: str, text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, person=kind.encode()).digest()


def shingles(conversation: Conversation, size: int) -> list[str]:
    """Runs of `size` words of a chat, in order; the whole text where it is shorter."""
    split = list(words(" ".join(message.content for message in conversation.turns)))
    return [" ".join(split[start : start + size]) for start in range(max(1, len(split) - size + 1))]


def signature(conversation: Conversation, shingle_words: int) -> npt.NDArray[np.uint32]:
    """MinHash signature of a chat's shingles. uint32 `[NUM_PERMUTATIONS]`."""
    from rensa import RMinHash  # type: ignore[import-untyped]

    sketch = RMinHash(num_perm=NUM_PERMUTATIONS, seed=_SEED)
    sketch.update(shingles(conversation, shingle_words))
    return np.array(sketch.digest(), dtype=np.uint32)


def entries(keys: pa.Table) -> pa.Table:
    """One row of `ENTRY_SCHEMA` for each key under which a chat of `keys` (`KEY_SCHEMA`) may meet another.

    `kind` is an index into `REASONS`. A near-duplicate needs one of `NUM_BANDS` band keys in common.
    """
    tables = []
    for kind, column in enumerate(("id", "exchange")):
        known = keys.filter(pc.is_valid(keys[column]))
        tables.append(_entry_table(known[column], kind, known["order"], pa.nulls(len(known), pa.binary())))
    signed = keys.filter(pc.greater(pc.binary_length(keys["signature"]), 0))
    bands: list[list[bytes]] = [_band_keys(value.as_py()) for value in signed["signature"]]
    for band in range(NUM_BANDS if bands else 0):
        values = pa.array([bands_of_one[band] for bands_of_one in bands], pa.binary(KEY_BYTES))
        tables.append(_entry_table(values, 2, signed["order"], signed["signature"]))
    return pa.concat_tables(tables)


def _entry_table(key: pa.ChunkedArray, kind: int, order: pa.ChunkedArray, signatures: pa.ChunkedArray) -> pa.Table:
    kinds = pa.array(np.full(len(order), kind, np.int8))
    return pa.table([key, kinds, order, signatures], schema=ENTRY_SCHEMA)


def _band_keys(values: bytes) -> list[bytes]:
    size = len(values) // NUM_BANDS
    return [
        blake2b(values[band * size : (band + 1) * size], digest_size=KEY_BYTES, person=f"band {band}".encode()).digest()
        for band in range(NUM_BANDS)
    ]


class Duplicate(NamedTuple):
    """A chat that is left out: its place, why, and the place of the chat it is a duplicate of."""

    order: int
    reason: DropReason
    first: int


def find_duplicates(table: pa.Table, near: float | None) -> list[Duplicate]:
    """The duplicates among all entries, in record order: one reason after the other, each among the chats left then.

    So no chat is left out as the exact duplicate of one that is left out itself. Near-duplicates may form a chain, of
    which the first stays.
    """
    found: list[Duplicate] = []
    for kind in range(len(REASONS)):
        found += duplicates_of_kind(remaining(table, kind, [one.order for one in found]), near)
    return sorted(found)


def remaining(table: pa.Table, kind: int, gone: Sequence[int]) -> pa.Table:
    """The entries of a kind without those of the chats that are `gone`."""
    of_kind = table.filter(pc.equal(table["kind"], kind))
    return of_kind.filter(pc.invert(pc.is_in(of_kind["order"], pa.array(gone, pa.int64()))))


def duplicates_of_kind(table: pa.Table, near: float | None) -> list[Duplicate]:
    """The duplicates among entries of one kind that hold all or none of each key; each chat at most once.

    A near-duplicate is compared with the first chat under its band key and with the one before it.
    """
    if table.num_rows < 2:
        return []
    table = table.cast(ENTRY_SCHEMA)  # a shuffle gives back keys of any length
    table = table.take(pc.sort_indices(table, [("key", "ascending"), ("order", "ascending")]))
    keys = np.frombuffer(table["key"].combine_chunks().buffers()[1], f"V{KEY_BYTES}", count=table.num_rows)
    orders, kinds = table["order"].to_numpy(), table["kind"].to_numpy()
    follows = np.concatenate([[False], keys[1:] == keys[:-1]])
    first = np.maximum.accumulate(np.where(follows, 0, np.arange(len(keys))))
    found = []
    for index in np.flatnonzero(follows):
        reason, others = REASONS[kinds[index]], [int(first[index])]
        if reason is DropReason.NEAR_DUPLICATE:
            others = [
                other
                for other in sorted({others[0], int(index) - 1})
                if near is not None and similarity(table["signature"][index], table["signature"][other]) >= near
            ]
        found += [Duplicate(int(orders[index]), reason, int(orders[other])) for other in others]
    return only_first(found)


def only_first(found: Iterable[Duplicate]) -> list[Duplicate]:
    """One for each chat, in record order: that with the first chat it is a duplicate of."""
    ordered = sorted(found, key=lambda one: (one.order, one.first), reverse=True)
    return list({duplicate.order: duplicate for duplicate in ordered}.values())[::-1]


def similarity(one: pa.BinaryScalar, other: pa.BinaryScalar) -> float:
    """Estimate of the Jaccard similarity of what two signatures stand for, 0 to 1."""
    mine, theirs = (np.frombuffer(value.as_buffer(), np.uint32) for value in (one, other))
    return float(np.mean(mine == theirs))
