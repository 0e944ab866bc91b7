"""A directory on a disk or a prefix on S3, with the same few operations."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from data_prep.storage import flush, flush_directory, is_remote, open_filesystem, write_text, written_aside


class Folder:
    """A place for files, which need not exist yet. Everything raises OSError as files do.

    `options` are those of pyarrow's `S3FileSystem`.
    """

    def __init__(self, place: str, **options: Any) -> None:
        self.place = place.rstrip("/") if is_remote(place) else str(Path(place).expanduser().absolute())
        self.is_remote = is_remote(place)
        self.filesystem, self.path = open_filesystem(self.place, **options)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.place}/{name}")

    def __str__(self) -> str:
        return self.place

    def sizes(self) -> dict[str, int]:
        """Names and bytes of the files in it, not of those in folders below."""
        return {info.base_name: info.size for info in self._entries() if info.is_file}

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        return sorted(info.base_name for info in self._entries() if not info.is_file)

    def _entries(self) -> list[Any]:
        return list(self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True)))

    def is_empty(self, *, but_for: str) -> bool:
        """Whether nothing is there, or in it nothing but what begins with `but_for`."""
        is_file = self.filesystem.get_file_info(self.path).is_file
        return not is_file and all(info.base_name.startswith(but_for) for info in self._entries())

    def make(self) -> None:
        """Create it where that means anything: a prefix on S3 is there once something is under it."""
        if not self.is_remote:
            Path(self.path).mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove it with all that is in it, if it is there."""
        if self.filesystem.get_file_info(self.path).type == fs.FileType.NotFound:
            return
        self.filesystem.delete_dir(self.path)

    def read(self, name: str) -> str | None:
        """The text of a file; None if there is no such file."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}", compression=None) as stream:
                return bytes(stream.read()).decode(errors="replace")
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Write a small file so that a reader sees the old text or the new, never a part. Creates no folder."""
        if not self.is_remote:
            write_text(Path(self.path) / name, text)
            return
        with self.filesystem.open_output_stream(f"{self.path}/{name}", compression=None) as stream:
            stream.write(text.encode())

    def append(self, name: str, text: str) -> None:
        """Add lines to the end of a file on a disk. What a kill left of a line before stays a line of its own."""
        with (Path(self.path) / name).open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.filesystem.get_file_info(f"{self.path}/{name}").is_file:
            self.filesystem.delete_file(f"{self.path}/{name}")

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A file's bytes; the stream can seek."""
        path = f"{self.path}/{name}"
        with self.filesystem.open_input_file(path) if self.is_remote else Path(path).open("rb") as stream:
            yield stream

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to be written. On S3 it is there once the block has ended."""
        path = f"{self.path}/{name}"
        with (
            self.filesystem.open_output_stream(path, compression=None)
            if self.is_remote
            else Path(path).open("wb") as stream
        ):
            yield stream

    def move_file(self, name: str, to: str) -> None:
        """Give a file in it, or on a disk a folder, another name."""
        self.filesystem.move(f"{self.path}/{name}", f"{self.path}/{to}")

    def commit_as(self, target: "Folder") -> None:
        """Flush it to the disk and give it the name of `target`, at once. Not for S3, which cannot rename.

        Raises:
            OSError: there is a `target` with something in it, or this is no longer there.
        """
        flush_directory(Path(self.path))
        Path(self.path).rename(target.path)
        flush(Path(target.path).parent)

    def upload(self, directory: Path) -> None:
        """Copy the files of a local directory into it."""
        fs.copy_files(str(directory), self.path, fs.LocalFileSystem(), self.filesystem)

    def publish(self, directory: Path, last: str) -> None:
        """Copy a local directory into it, with what is below; at the end the file `last`, which says it is whole."""
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path == directory / last):
            target = f"{self.path}/{file.relative_to(directory).as_posix()}"
            if not self.is_remote:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(str(file), target, fs.LocalFileSystem(), self.filesystem)

    def fetch(self, directory: Path) -> None:
        """Copy all that is in it to a local directory, which is seen whole or not at all."""
        with written_aside(directory) as aside:
            fs.copy_files(self.path, str(aside), self.filesystem, fs.LocalFileSystem())

    def free_bytes(self) -> int | None:
        """Room left on its disk; None on S3."""
        return None if self.is_remote else shutil.disk_usage(self.path).free
