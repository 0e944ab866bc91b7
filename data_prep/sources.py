"""Streaming readers of raw chats. A record that cannot be read becomes a `Record` with an error, never a crash.

Knows nothing of what a record means. A file is never held in memory as a whole: its records come one at a time. To read
another format, write its reader, which yields a value or an error per record, and name it in `_READERS`.
"""

import glob
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pyarrow import ArrowException, RecordBatch
from pyarrow.fs import FileSelector, FileSystem
from pyarrow.parquet import ParquetFile

from data_prep.config import DEMO
from data_prep.errors import DataError
from data_prep.json_records import CHUNK_BYTES, Outcome, mended, read_json, read_lines
from data_prep.storage import is_remote, open_filesystem
from data_prep.unpack import UNPACKERS, UnpackedStream

DEMO_CHATS = Path(__file__).parent / "data" / "demo_chats.json"

_WILDCARD = re.compile(r"[*?\[]")
_PARQUET_ROWS = 1024

_Reader = Callable[[FileSystem, str, Callable[[int], None]], Iterator[Outcome]]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its value, or why there is none. `position` counts the file's records from 0."""

    position: int
    value: Any | None
    error: str | None = None


def source_name(path: str) -> str:
    """What a dataset calls the file at `path`."""
    return DEMO if path == str(DEMO_CHATS) else path


def expand_source(path: str) -> list[str]:
    """List the files that a file, folder (searched throughout) or glob stands for, on a disk or on `s3://`, sorted.

    Raises:
        DataError: the path does not exist or stands for no file that can be read; the message says which can be.
    """
    try:
        places = _expand_remote(path) if is_remote(path) else _expand_local(path)
    except OSError as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from None
    if not places and not Path(path).is_dir():
        raise DataError(f"{path}: no such file, folder or glob match; {_VALID}")
    readable = sorted(place for place in places if _format(place) in _READERS)
    if not readable:
        what = "cannot be read" if places == [path] else "holds no file that can be read"
        raise DataError(f"{path}: {what}; {_VALID}")
    return readable


def _expand_local(path: str) -> list[str]:
    matches = [Path(path)] if Path(path).exists() else sorted(map(Path, glob.glob(path, recursive=True)))
    return [str(file) for match in matches for file in (_files_under(match) if match.is_dir() else [match])]


def _files_under(folder: Path) -> list[Path]:
    """Files in a folder and its folders, but for hidden ones."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _expand_remote(path: str) -> list[str]:
    filesystem, inner = open_filesystem(path)
    scheme = path.partition("://")[0]
    fixed = "/".join(takewhile(lambda part: not _WILDCARD.search(part), inner.split("/")))
    if fixed == inner and filesystem.get_file_info(inner).is_file:
        return [path]
    found = filesystem.get_file_info(FileSelector(fixed, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.is_file and "/." not in info.path.removeprefix(fixed)]
    wanted = _glob_pattern(inner) if fixed != inner else re.compile("")
    return [f"{scheme}://{file}" for file in files if wanted.match(file)]


def _glob_pattern(path: str) -> re.Pattern[str]:
    """What matches a glob: `*` and `?` within a folder, `**` through folders."""
    translated = re.escape(path).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    return re.compile(translated.replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + r"\Z")


def read_records(path: str, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> Iterator[Record]:
    """Yield the records of one file in their order, bad ones among them. `.gz` and `.zst` are unpacked on the way.

    `on_bytes` is told how many bytes of the file have been read by then.

    Raises:
        DataError: the file does not exist, has a format that is not read here, or cannot be opened.
    """
    reader = _READERS.get(_format(path))
    if reader is None:
        raise DataError(f"{path}: cannot be read; {_VALID}")
    try:
        filesystem, inner = open_filesystem(path)
        for position, (value, error) in enumerate(reader(filesystem, inner, on_bytes)):
            yield Record(position, value, error)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: {_first_line(error)}; {_VALID}") from error


def _format(path: str) -> str:
    """The ending that tells a file's format, without that of its compression."""
    name = path.lower()
    for packed in UNPACKERS:
        name = name.removesuffix(packed)
    return PurePosixPath(name).suffix


def _first_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return reason.strip().splitlines()[0]


def _unpacked(reader: Callable[[BinaryIO], Iterator[Outcome]]) -> _Reader:
    """A reader of plain bytes that takes packed files too. Of a damaged one it gives what stands before the damage."""

    def read(filesystem: FileSystem, path: str, on_bytes: Callable[[int], None]) -> Iterator[Outcome]:
        unpack = next((unpack for ending, unpack in UNPACKERS.items() if path.lower().endswith(ending)), None)
        with filesystem.open_input_file(path) as file:
            stream = None if unpack is None else UnpackedStream(unpack(file))
            last: Outcome | None = None
            size = file.size()
            for outcome in reader(cast(BinaryIO, io.BufferedReader(stream or file, CHUNK_BYTES))):
                on_bytes(size if file.closed else file.tell())  # an unpacker closes what it has read
                if last is not None:
                    yield last
                last = outcome
            damage = stream and stream.damage
            if damage is None:
                yield from () if last is None else (last,)
            elif last is not None and last[1] is not None:
                yield None, f"{last[1]}; the packed file is damaged: {damage}"
            else:
                yield from () if last is None else (last,)
                yield None, f"the packed file is damaged: {damage}"

    return read


def _read_parquet(filesystem: FileSystem, path: str, on_bytes: Callable[[int], None]) -> Iterator[Outcome]:
    """Read a record a row."""
    with filesystem.open_input_file(path) as file:
        table, num_read = ParquetFile(file), 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            num_read += batch.num_rows
            on_bytes(file.size() * num_read // table.metadata.num_rows)
            for value, error in _values(batch):
                yield mended(value, "\\ud"), error


def _values(batch: RecordBatch) -> list[Outcome]:
    """The rows of a batch; a cell that stands for no value, such as bytes that are no text, costs its row."""
    try:
        return [(value, None) for value in batch.to_pylist()]
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [(None, str(error))]
    return [outcome for row in range(batch.num_rows) for outcome in _values(batch.slice(row, 1))]


_READERS: dict[str, _Reader] = {
    ".json": _unpacked(read_json),
    ".jsonl": _unpacked(read_lines),
    ".parquet": _read_parquet,
}
_VALID = (
    f"valid are files that end in {', '.join(_READERS)}, the first two also with {' or '.join(UNPACKERS)}, "
    "folders that hold some, and globs of them"
)
