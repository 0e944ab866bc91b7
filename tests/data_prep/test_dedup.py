"""The first of the chats that are the same stays; it does not matter how the work is shared out."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import DedupSettings
from data_prep.conversation import Conversation, DropReason, Message, Role
from data_prep.dedup import (
    KEY_SCHEMA,
    REASONS,
    Duplicate,
    duplicates_of_kind,
    entries,
    find_duplicates,
    make_key,
    only_first,
    record_order,
    remaining,
    signature,
    split_order,
)

EXACT = DedupSettings()
NEAR = DedupSettings.parse({"exact": False, "near": 0.8})


def chat(identifier: str, *texts: str) -> Conversation:
    roles = (Role.USER, Role.ASSISTANT)
    return Conversation(identifier, tuple(Message(roles[index % 2], text) for index, text in enumerate(texts)))


def keys(chats: Sequence[Conversation], settings: DedupSettings) -> pa.Table:
    made = [make_key(conversation, record_order(1, position), settings) for position, conversation in enumerate(chats)]
    columns: Any = zip(*made, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, KEY_SCHEMA, strict=True)], KEY_SCHEMA
    )


def duplicates(*chats: Conversation, settings: DedupSettings = EXACT) -> list[tuple[int, DropReason, int]]:
    found = find_duplicates(entries(keys(chats, settings)), settings.near)
    return [(split_order(one.order)[1], one.reason, split_order(one.first)[1]) for one in found]


def test_the_same_id_or_first_exchange_is_the_same_chat() -> None:
    assert duplicates(
        chat("a", "Hi", "Hello"),
        chat("a", "Other", "Words"),
        chat("b", " hi ", "HELLO", "more", "words"),
        chat("c", "Hi", "Hello there"),
        chat("a", "Hi", "Hello"),
        chat("d", "Other", "Words"),
    ) == [
        (1, DropReason.DUPLICATE_ID, 0),
        (2, DropReason.DUPLICATE_EXCHANGE, 0),
        (4, DropReason.DUPLICATE_ID, 0),
    ]


def test_a_small_change_makes_a_near_duplicate_and_another_text_does_not() -> None:
    words = [f"word{number}" for number in range(200)]
    changed = [*words[:100], "new", *words[101:]]
    other = random.Random(0).sample(words, len(words))
    chats = [chat(name, "Tell me.", " ".join(text)) for name, text in (("a", words), ("b", changed), ("c", other))]
    assert duplicates(*chats, settings=NEAR) == [(1, DropReason.NEAR_DUPLICATE, 0)]
    assert duplicates(*chats, settings=EXACT) == []


def test_signatures_estimate_the_jaccard_similarity() -> None:
    rng = random.Random(1)
    for _ in range(10):
        shared, own = rng.randint(0, 300), rng.randint(1, 300)
        texts = [" ".join([f"s{n}" for n in range(shared)] + [f"{name}{n}" for n in range(own)]) for name in "ab"]
        one, other = (signature(chat(text, text, ""), 1) for text in texts)
        assert abs(float(np.mean(one == other)) - shared / (shared + 2 * own)) < 0.2


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 5), st.randoms())
def test_the_result_does_not_depend_on_how_the_entries_are_shared_out(
    texts: list[int], num_parts: int, rng: random.Random
) -> None:
    settings = DedupSettings.parse({"near": 0.9})
    chats = [chat(f"{position % 11}", f"question {text}", f"answer {text}") for position, text in enumerate(texts)]
    table = entries(keys(chats, settings))
    whole = find_duplicates(table, settings.near)
    found: list[Duplicate] = []
    for kind in range(len(REASONS)):
        left = remaining(table, kind, [one.order for one in found])
        parts = [int.from_bytes(key.as_py()[:2]) % num_parts for key in left["key"]]
        of_kind: list[Duplicate] = []
        for part in rng.sample(range(num_parts), num_parts):
            members = [index for index, of in enumerate(parts) if of == part]
            shuffled = pa.array(rng.sample(members, len(members)), pa.int64())
            of_kind += duplicates_of_kind(left.take(shuffled), settings.near)
        found += only_first(of_kind)
    assert sorted(found) == whole
    kept = set(range(len(chats))) - {split_order(one.order)[1] for one in whole}
    assert {texts[position] for position in kept} == {texts[position] for position in range(min(len(texts), 11))}
    assert 0 in kept


@pytest.mark.parametrize(("file", "position"), [(0, 0), (1, 0), (9999, (1 << 40) - 1)])
def test_an_order_holds_file_and_position(file: int, position: int) -> None:
    assert split_order(record_order(file, position)) == (file, position)
    assert record_order(file, position) < record_order(file + 1, 0)


def test_no_keys_no_duplicates() -> None:
    assert find_duplicates(entries(KEY_SCHEMA.empty_table()), 0.8) == []
