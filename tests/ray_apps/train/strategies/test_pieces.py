import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ray_apps.train.strategies.pieces import Piece


def test_a_piece_shares_memory_and_a_clone_does_not() -> None:
    values = torch.arange(10.0)
    piece = Piece.of(values[3:7], 3, 10)
    copies = [piece.detach().clone(), piece.to("cpu", copy=True), torch.empty_like(piece).copy_(piece)]
    values.zero_()
    assert piece.tolist() == [0.0] * 4
    for copy in copies:
        assert isinstance(copy, Piece)
        assert (copy.start, copy.num_whole, copy.tolist()) == (3, 10, [3.0, 4.0, 5.0, 6.0])


@pytest.mark.parametrize(("start", "end"), [(0, 10), (0, 3), (3, 7), (9, 10), (4, 4)])
def test_any_part_is_read_from_a_checkpoint(tmp_path: Path, start: int, end: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save({"a": {"b": Piece.of(torch.arange(10.0), 0, 10)}}, checkpoint_id=tmp_path, no_dist=True)
        into = torch.full((end - start,), -1.0)
        load({"a": {"b": Piece.of(into, start, 10)}}, checkpoint_id=tmp_path, no_dist=True)
    assert into.tolist() == list(map(float, range(start, end)))
