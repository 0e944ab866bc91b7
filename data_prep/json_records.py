"""Records of JSON text, one at a time. What cannot be read gives an error, and reading goes on behind it."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
_MAX_RECORD_BYTES = 64 << 20  # a longer one is bad, or a broken quote would pull in the rest of the file
_MAX_DEPTH = 100
_MAX_START = 256  # characters in which a record's brace and first key are sought together
_SEPARATORS = re.compile(r"[\s,\ufeff]*")
_AT_END = re.compile(r"\s*+[\w\\.+-]{0,12}\s*+\Z")  # where the text ends, but for a part of a literal or an escape
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_MAY_HOLD_SURROGATES = re.compile(r"[\ud800-\udfff]|\\u[dD]")
_DECODER = json.JSONDecoder(strict=False)

Outcome = tuple[Any, str | None]
"""A value, or why there is none."""


def read_json(file: BinaryIO) -> Iterator[Outcome]:
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


def read_lines(file: BinaryIO) -> Iterator[Outcome]:
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
    while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _parse_line(line: bytes) -> Outcome:
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
    return mended(value, raw)


def _is_flat(value: Any, most: int) -> bool:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return not inner or (most > 0 and all(_is_flat(item, most - 1) for item in inner))


def mended(value: Any, raw: str) -> Any:
    """The value read from `raw`, with U+FFFD for bytes that are not UTF-8 and for halves of surrogate pairs.

    Such text can be neither stored nor tokenised.
    """
    if not _MAY_HOLD_SURROGATES.search(raw):
        return value
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [mended(item, raw) for item in value]
    if isinstance(value, dict):
        return {mended(key, raw): mended(item, raw) for key, item in value.items()}
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class _Window:
    """The unread part of a file as text. It grows when a value does not fit, and forgets what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.text = ""
        self.position = 0
        self._file = file
        self._bytes_before = 0
        self._ended = False
        # Bytes that are not UTF-8 become lone surrogates, so that offsets are right; `mended` replaces them.
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
        chunk = self._file.read(max(CHUNK_BYTES, len(unread)))
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

    def take(self, start: re.Pattern[str]) -> Outcome:
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
