from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.encode import IGNORE_INDEX
from data_prep.pack import Row
from ray_apps.train.data import RowOrder, RowStore, collate


@given(st.integers(4, 200), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 3))
def test_each_epoch_has_each_row_once_at_any_world_size(rows: int, world_size: int, micro: int, seed: int) -> None:
    order = RowOrder(rows, 4 * micro, seed) if rows >= 4 * micro else RowOrder(rows, 4, seed)
    if order.global_batch_size % (world_size * micro):
        micro = 1
    seen = []
    for step in range(order.steps_per_epoch):
        parts = [order.micro_batches(step, rank, world_size, micro) for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        step_rows = sorted(index for part in parts for batch in part for index in batch)
        assert step_rows == sorted(order.batch(step).tolist())
        seen += step_rows
    assert len(set(seen)) == len(seen) == order.steps_per_epoch * order.global_batch_size


def test_epochs_differ_and_the_order_is_a_function_of_the_seed() -> None:
    order = RowOrder(100, 10, seed=1)
    assert order.batch(3).tolist() == RowOrder(100, 10, seed=1).batch(3).tolist()
    assert order.batch(3).tolist() != order.batch(13).tolist()
    assert order.batch(3).tolist() != RowOrder(100, 10, seed=2).batch(3).tolist()


def row(lengths: tuple[int, ...], first: int = 0) -> Row:
    tokens = sum(lengths)
    weights = np.ones(tokens, np.float32)
    weights[1] = 0.0
    ids = np.arange(first, first + tokens, dtype=np.int32)
    names = tuple(f"d{length}" for length in lengths)
    return Row(ids, weights, lengths, names, ("",) * len(lengths), (0,) * len(lengths))


def test_targets_are_the_next_tokens_within_a_chat() -> None:
    batch = collate([row((3, 2)), row((2,), first=10)])
    assert batch.input_ids.tolist() == [[0, 1, 2, 3, 4, 10, 11]]
    assert batch.targets.tolist() == [[IGNORE_INDEX, 2, IGNORE_INDEX, 4, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.weights.tolist() == [[0, 1, 0, 1, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch.cu_seq_lens.tolist() == [0, 3, 5, 7]
    assert batch.max_length == 3


def test_target_weights_of_a_store_are_those_of_its_batches(tiny_dataset: Path) -> None:
    rows = RowStore(tiny_dataset / "train")
    assert len(rows) > 10
    sums = [float(collate([rows[index]]).weights.sum()) for index in range(len(rows))]
    assert rows.target_weights.tolist() == sums


def test_an_empty_part_has_no_rows(tiny_dataset: Path) -> None:
    assert len(RowStore(tiny_dataset / "eval")) == 0
