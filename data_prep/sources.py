"""Streaming readers of raw chats. A record that cannot be read becomes a `Record` with an error, never a crash.

Knows nothing of what a record means. A file is never held in memory as a whole: its records come one at a time. To read
another format, write its reader, which yields a value or an error per record, and name it in `_READERS`.
"""

import codecs
import glob
import io
import json
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
from data_prep.storage import is_remote, open_filesystem
from data_prep.unpack import UNPACKERS, UnpackedStream

DEMO_CHATS = Path(__file__).parent / "data" / "demo_chats.json"

_CHUNK_BYTES = 1 << 20
_MAX_RECORD_BYTES = 64 << 20  # a longer one is bad, or a broken quote would pull in the rest of the file
_MAX_DEPTH = 100
_MAX_START = 256  # characters in which a record's brace and first key are sought together
_SEPARATORS = re.compile(r"[\s,\ufeff]*")
_AT_END = re.compile(r"\s*+[\w\\.+-]{0,12}\s*+\Z")  # where the text ends, but for a part of a literal or an escape
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_MAY_HOLD_SURROGATES = re.compile(r"[\ud800-\udfff]|\\u[dD]")
_DECODER = json.JSONDecoder(strict=False)

_WILDCARD = re.compile(r"[*?\[]")
_PARQUET_ROWS = 1024

_Outcome = tuple[Any, str | None]  # a value, or why there is none
_Reader = Callable[[FileSystem, str, Callable[[int], None]], Iterator[_Outcome]]


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


class _Window:
    """The unread part of a file as text. It grows when a value does not fit, and forgets what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.text = ""
        self.position = 0
        self._file = file
        self._bytes_before = 0
        self._ended = False
        # Bytes that are not UTF-8 become lone surrogates, so that offsets are right; `_mended` replaces them.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    @property
    def offset(self) -> int:
        """Bytes of the file before the position."""
        return self._bytes_before + len(self.text[: self.position].encode("utf-8", "surrogateescape"))

    def grow(self) -> bool:
        """Read on, at least as much as is unread, so that trying again costs a constant factor; False at the end."""
        if self._ended:
            return False
        self._bytes_before, unread = self.offset, self.text[self.position :]
        chunk = self._file.read(max(_CHUNK_BYTES, len(unread)))
        self._ended = not chunk
        self.text, self.position = unread + self._decoder.decode(chunk, self._ended), 0
        return True

    def peek(self) -> str:
        """Skip what separates values and return the next character, or nothing at the end."""
        while True:
            separators = _SEPARATORS.match(self.text, self.position)
            self.position = separators.end() if separators else self.position
            if self.position < len(self.text) or not self.grow():
                return self.text[self.position : self.position + 1]

    def take(self, start: re.Pattern[str]) -> _Outcome:
        """Read one value; what cannot be read is passed over up to the next match of `start`."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                value = _checked(value, self.text[self.position : end])
            except (ValueError, RecursionError) as error:
                cut = self._is_cut(error)
                if cut and self.grow():
                    continue
                reason = f"byte {self.offset}: {'the record is cut off' if cut else _reason(error)}"
                self._seek(start)
                return None, reason
            if end < len(self.text) or not self.grow():
                self.position = end
                return value, None

    def _is_cut(self, error: Exception) -> bool:
        """Whether the value might be whole if there were more text."""
        if not isinstance(error, json.JSONDecodeError) or len(self.text) - self.position > _MAX_RECORD_BYTES:
            return False
        return error.msg.startswith("Unterminated string") or _AT_END.match(self.text, error.pos) is not None

    def _seek(self, pattern: re.Pattern[str]) -> None:
        self.position += 1
        while not (found := pattern.search(self.text, self.position)):
            self.position = max(self.position, len(self.text) - _MAX_START)
            if not self.grow():
                self.position = len(self.text)
                return
        self.position = found.start()


def _unpacked(reader: Callable[[BinaryIO], Iterator[_Outcome]]) -> _Reader:
    """A reader of plain bytes that takes packed files too. Of a damaged one it gives what stands before the damage."""

    def read(filesystem: FileSystem, path: str, on_bytes: Callable[[int], None]) -> Iterator[_Outcome]:
        unpack = next((unpack for ending, unpack in UNPACKERS.items() if path.lower().endswith(ending)), None)
        with filesystem.open_input_file(path) as file:
            stream = None if unpack is None else UnpackedStream(unpack(file))
            last: _Outcome | None = None
            size = file.size()
            for outcome in reader(cast(BinaryIO, io.BufferedReader(stream or file, _CHUNK_BYTES))):
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


def _read_parquet(filesystem: FileSystem, path: str, on_bytes: Callable[[int], None]) -> Iterator[_Outcome]:
    """Read a record a row."""
    with filesystem.open_input_file(path) as file:
        table, num_read = ParquetFile(file), 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            num_read += batch.num_rows
            on_bytes(file.size() * num_read // table.metadata.num_rows)
            for value, error in _values(batch):
                yield _mended(value, "\\ud"), error


def _values(batch: RecordBatch) -> list[_Outcome]:
    """The rows of a batch; a cell that stands for no value, such as bytes that are no text, costs its row."""
    try:
        return [(value, None) for value in batch.to_pylist()]
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [(None, str(error))]
    return [outcome for row in range(batch.num_rows) for outcome in _values(batch.slice(row, 1))]


def _read_json(file: BinaryIO) -> Iterator[_Outcome]:
    """Read an array of records, or records one after another, as there are in files of lines that end in .json."""
    window = _Window(file)
    in_array = window.peek() == "["
    window.position += in_array
    first = _FIRST_KEY.match(window.text, window.position)
    start, error = _start_of(first[1] if first else '"id"'), None
    while (character := window.peek()) and not (in_array and character == "]"):
        value, error = window.take(start)
        if isinstance(value, dict) and value:
            start = _start_of(json.dumps(next(iter(value)), ensure_ascii=False))
        yield value, error
    if not in_array:
        return
    if character:
        window.position += 1
        if window.peek():
            yield None, f"byte {window.offset}: there is more after the end of the array"
    elif error is None:
        yield None, f"byte {window.offset}: the array is cut off"


def _start_of(key: str) -> re.Pattern[str]:
    """What a record begins with. The records of a file begin alike, so this finds the next one after a broken one."""
    return re.compile(r"\{\s*" + re.escape(key) + r"\s*:")


def _read_lines(file: BinaryIO) -> Iterator[_Outcome]:
    """Read a record a line; blank lines are none."""
    number = 0
    while line := file.readline(_MAX_RECORD_BYTES):
        number += 1
        if len(line) == _MAX_RECORD_BYTES and not line.endswith(b"\n"):
            _skip_line(file)
            yield None, f"line {number}: longer than {_MAX_RECORD_BYTES} bytes"
        elif line := line.removeprefix(codecs.BOM_UTF8).strip():
            value, error = _parse_line(line)
            yield value, error and f"line {number}: {error}"


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _parse_line(line: bytes) -> _Outcome:
    try:
        text = line.decode("utf-8", "surrogateescape")
        return _checked(_DECODER.decode(text), text), None
    except (ValueError, RecursionError) as error:
        return None, _reason(error)


def _checked(value: Any, raw: str) -> Any:
    """The value read from `raw`, mended.

    Raises:
        ValueError: it is nested so deeply that a later step could not read it.
    """
    if raw.count("[") + raw.count("{") > _MAX_DEPTH and not _is_flat(value, _MAX_DEPTH):
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    return _mended(value, raw)


def _is_flat(value: Any, most: int) -> bool:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return not inner or (most > 0 and all(_is_flat(item, most - 1) for item in inner))


def _mended(value: Any, raw: str) -> Any:
    """The value read from `raw`, with U+FFFD for bytes that are not UTF-8 and for halves of surrogate pairs.

    Such text can be neither stored nor tokenised.
    """
    if not _MAY_HOLD_SURROGATES.search(raw):
        return value
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item, raw) for item in value]
    if isinstance(value, dict):
        return {_mended(key, raw): _mended(item, raw) for key, item in value.items()}
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


_READERS: dict[str, _Reader] = {
    ".json": _unpacked(_read_json),
    ".jsonl": _unpacked(_read_lines),
    ".parquet": _read_parquet,
}
_VALID = (
    f"valid are files that end in {', '.join(_READERS)}, the first two also with {' or '.join(UNPACKERS)}, "
    "folders that hold some, and globs of them"
)
