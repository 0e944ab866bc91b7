"""Parts of flat tensors, as torch.distributed.checkpoint saves and loads them.

A checkpoint of such parts can be read with any other partition, at any world size: what universal checkpoints do
(Lian et al. 2024), without a conversion in between.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Piece(torch.Tensor):
    """The elements from `start` on of a flat tensor of `num_whole` elements; `[n]`, n may be 0.

    It shares its memory with the tensor it was made of. A clone of it knows its place too. The methods with underscores
    are the protocol of torch.distributed.checkpoint, which otherwise knows evenly sharded tensors only.
    """

    start: int
    num_whole: int
    # torch.distributed.checkpoint would take it for that of the whole, and refuse the piece. `shape` is the piece's.
    size = None  # type: ignore[assignment]

    @staticmethod
    def of(values: torch.Tensor, start: int, num_whole: int) -> "Piece":
        """`values`, `[n]`, as the piece from `start` on."""
        piece = values.detach().as_subclass(Piece)
        piece.start, piece.num_whole = start, num_whole
        return piece

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        source = next((value for value in args if isinstance(value, Piece)), None)
        if isinstance(result, Piece) and source is not None and result.shape == source.shape:
            result.__dict__.update(source.__dict__)
        return result

    def _chunks(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size([self.start]), self.shape)] if self.numel() else []

    def __create_write_items__(self, name: str, value: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self)
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size([self.num_whole])),
            )
            for chunk in self._chunks()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self._chunks()

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)
