"""Packed files as streams of bytes that end where the file does, or at the damage; what stands before is given."""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pyarrow import CompressedInputStream, NativeFile

_GZIP = 16 + zlib.MAX_WBITS
_PACKED_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20
_ZSTD_BYTES = 64


class UnpackedStream(io.RawIOBase):
    """Pieces of bytes as a file, which ends where they do, or where they are damaged."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.damage: str | None = None
        self._pieces = pieces
        self._piece = b""

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        while not self._piece:
            try:
                self._piece = next(self._pieces)
            except StopIteration:
                return 0
            except (OSError, zlib.error) as error:
                self.damage = str(error).strip().splitlines()[0]
                return 0
        size = min(len(buffer), len(self._piece))
        buffer[:size], self._piece = self._piece[:size], self._piece[size:]
        return size


def _gunzip(file: NativeFile) -> Iterator[bytes]:
    """The members of a gzip file one after another."""
    member, begun = zlib.decompressobj(_GZIP), False
    while packed := file.read(_PACKED_BYTES):
        while packed:
            if not begun and not (packed := packed.lstrip(b"\0")):  # padding
                break
            begun = True
            yield member.decompress(packed, _PIECE_BYTES)
            packed = member.unused_data if member.eof else member.unconsumed_tail
            if member.eof:
                member, begun = zlib.decompressobj(_GZIP), False
    if begun:
        raise OSError("it ends in the middle")


def _unzstd(file: NativeFile) -> Iterator[bytes]:
    """In small pieces, since of the piece in which the damage lies nothing is given."""
    stream = CompressedInputStream(file, "zstd")
    while piece := stream.read(_ZSTD_BYTES):
        yield piece


UNPACKERS: dict[str, Callable[[NativeFile], Iterator[bytes]]] = {".gz": _gunzip, ".zst": _unzstd}
"""What unpacks a file, by its ending."""
