"""The files of a sharded checkpoint: torch.distributed.checkpoint's own, written to and read from a `Folder`."""

import hashlib
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

from data_prep.folder import Folder
from ray_apps.run_dir import Files


class ShardWriter(FileSystemWriter):
    """Writes this rank's files to a folder. `files` then tells their sizes and checksums, taken while writing."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path, sync_files=not folder.is_remote)
        self.files: Files = {}
        self.fs: FileSystemBase = _FolderFiles(folder, self.files)  # type: ignore[assignment]


class ShardReader(FileSystemReader):
    """Reads from a folder; from S3 one request a tensor."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path)
        self.fs: FileSystemBase = _FolderFiles(folder, {})  # type: ignore[assignment]
        self._whole_slices = folder.is_remote

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        if not self._whole_slices:
            return super()._slice_file(file, sinfo)
        file.seek(sinfo.offset)
        return io.BytesIO(file.read(sinfo.length))


class _FolderFiles(FileSystemBase):
    """What torch.distributed.checkpoint asks of a file system, for the files of one folder."""

    def __init__(self, folder: Folder, files: Files) -> None:
        self._folder = folder
        self._files = files

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        name = PurePosixPath(path).name
        if mode == "rb":
            with self._folder.reading(name) as stream:
                yield stream
            return
        with self._folder.writing(name) as raw:
            digesting = _Digesting(raw)
            yield digesting
        self._files[name] = {"bytes": digesting.tell(), "sha256": digesting.sha256.hexdigest()}

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        old, new = PurePosixPath(path).name, PurePosixPath(new_path).name
        self._folder.move_file(old, new)
        self._files[new] = self._files.pop(old)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._folder.make()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return PurePosixPath(path).name in self._folder.sizes()

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._folder.remove_file(PurePosixPath(path).name)


class _Digesting(io.RawIOBase):
    """A stream that sums up what is written to it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._size = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._raw.write(data)
        self.sha256.update(data)
        self._size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._raw.flush()

    def fileno(self) -> int:
        return self._raw.fileno()
