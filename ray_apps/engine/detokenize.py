"""From ids to text, token by token: whole characters only, and nothing that may turn out to be a stop string.

Each token is a piece of bytes, whatever the tokenizer's kind, and text is those bytes read as UTF-8 as they come. So an
emoji spread over four byte tokens appears with the last of them. Bytes that form no character are left out.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from data_prep.byte_level import BYTE_LEVEL
from data_prep.errors import ModelError

CALL_MARKS = {"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"}
"""Text, though tokenizers may call them special: they tell where the assistant calls tools."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`pieces[id]`: the bytes of a token, empty for a special one. `strips_space`: a text's first space is dropped."""

    pieces: tuple[bytes, ...]
    strips_space: bool = False


def read_vocabulary(backend: Tokenizer) -> Vocabulary:
    """The bytes of every token of a byte-level or a SentencePiece-like tokenizer.

    Raises:
        ModelError: the tokenizer's decoder is of another kind.
    """
    steps = list(_flatten(json.loads(backend.to_str())["decoder"]))
    unknown = [step["type"] for step in steps if not _is_known(step)]
    if unknown or not steps:
        raise ModelError(f"the tokenizer's decoder ({', '.join(unknown) or 'none'}) is not supported")
    pieces = {index: _token_bytes(token, steps) for token, index in backend.get_vocab(with_added_tokens=False).items()}
    for index, token in backend.get_added_tokens_decoder().items():
        pieces[index] = b"" if token.special and token.content not in CALL_MARKS else token.content.encode()
    size = max(pieces, default=-1) + 1
    return Vocabulary(tuple(pieces.get(index, b"") for index in range(size)), any(map(_strips_space, steps)))


def _flatten(decoder: Any) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flatten(step)


def _is_known(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return "String" in step["pattern"]
    if step["type"] == "Strip":
        return (step["content"], step["stop"]) == (" ", 0) and step["start"] in (0, 1)
    return step["type"] in {"ByteFallback", "ByteLevel", "Fuse", "Metaspace"}


def _strips_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return bool(step["start"])
    return (step["type"], step.get("prepend_scheme")) in {("Metaspace", "always"), ("Metaspace", "first")}


def _token_bytes(token: str, steps: Sequence[dict[str, Any]]) -> bytes:
    for step in steps:
        match step["type"]:
            case "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            case "Metaspace":
                token = token.replace(step["replacement"], " ")
            case "ByteFallback" if match := _BYTE_TOKEN.fullmatch(token):
                return bytes([int(match[1], 16)])
            case "ByteLevel" if all(char in BYTE_LEVEL for char in token):
                return bytes(BYTE_LEVEL[char] for char in token)
    return token.encode()


class Detokenizer:
    """The text of one answer as its tokens come.

    What `push` and `finish` return, joined, is the whole text up to the first completed stop string. An incomplete
    character at the end is left out. `strip_space` says whether a space at the start is dropped; None: as the tokenizer
    does with a whole text.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = (), *, strip_space: bool | None = None) -> None:
        self.stopped = False
        self._pieces = vocabulary.pieces
        self._at_start = vocabulary.strips_space if strip_space is None else strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is now certain. After a stop string, `stopped` is set."""
        if self.stopped:
            return ""
        text = self._decoder.decode(self._pieces[token_id]) if token_id < len(self._pieces) else ""
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        self._held += text
        end = self._find_stop()
        if end is not None:
            self.stopped = True
            return self._release(end)
        return self._release(len(self._held) - self._doubtful())

    def finish(self) -> str:
        """The text held back because it might have become a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _find_stop(self) -> int | None:
        """Where the stop string that is completed first begins; of several completed at once, the longest."""
        found = [(self._held.find(stop), len(stop)) for stop in self._stop]
        ends = [(start + length, start) for start, length in found if start >= 0]
        return min(ends)[1] if ends else None

    def _doubtful(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, without being all of it."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
