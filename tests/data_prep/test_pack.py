import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.encode import EncodedChat
from data_prep.pack import Document, best_fit, make_rows, position_ids, rows_to_table, table_to_rows


def chat(length: int, first: int = 0) -> EncodedChat:
    return EncodedChat(np.arange(first, first + length, dtype=np.int32), np.ones(length, np.float32))


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 128))
def test_nothing_is_lost_nothing_twice_nothing_too_long(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in bins)


def test_sharegpt_like_lengths_fill_the_rows() -> None:
    rng = random.Random(0)
    lengths = [min(2048, max(20, int(rng.lognormvariate(6.3, 1.1)))) for _ in range(4096)]
    bins = best_fit(lengths, 2048)
    assert sum(lengths) / (len(bins) * 2048) >= 0.98


def test_an_item_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1 of length 9 exceeds the capacity 8"):
        best_fit([3, 9], 8)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.booleans())
def test_rows_hold_every_chat_whole(lengths: list[int], pack: bool) -> None:
    chats = [Document(f"c{index}", chat(length, 100 * index)) for index, length in enumerate(lengths)]
    rows = make_rows(chats, 16, pack=pack)
    found = {}
    for row in rows:
        starts = np.cumsum((0, *row.document_lengths))
        for identifier, start, length in zip(row.document_ids, starts, row.document_lengths, strict=False):
            assert identifier not in found
            found[identifier] = row.input_ids[start : start + length].tolist()
        assert starts[-1] == len(row.input_ids) == len(row.weights)
    assert found == {document.id: document.tokens.input_ids.tolist() for document in chats}
    assert pack or len(rows) == len(chats)


def test_positions_restart_in_each_chat() -> None:
    assert position_ids([3, 1, 2]).tolist() == [0, 1, 2, 0, 0, 1]


def test_rows_survive_arrow() -> None:
    rows = make_rows([Document("a", chat(3), "x.json", 2), Document("b", chat(4), "y.json")], 8, pack=True)
    back = list(table_to_rows(rows_to_table(rows)))
    assert [row.document_ids for row in back] == [("a", "b")]
    assert [(row.document_sources, row.document_parts) for row in back] == [(("x.json", "y.json"), (2, 0))]
    assert back[0].input_ids.tolist() == rows[0].input_ids.tolist()
