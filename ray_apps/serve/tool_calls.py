"""Calls of tools, read out of answers as these come. What turns out to be no call is text, to the last character."""

import json
import re
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from ray_apps.serve.jobs import CalledTool, Delta
from ray_apps.serve.protocol.fields import check_unicode
from ray_apps.serve.protocol.strict_json import check_shape
from ray_apps.serve.tools import CallFormat

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_TOOL_CALLS, _ARGS = "[TOOL_CALLS]", "[ARGS]"


@dataclass(frozen=True)
class Piece:
    """What has become certain: text, and calls after it."""

    text: str = ""
    calls: tuple[CalledTool, ...] = ()


class CallReader(ABC):
    """Reads one answer. `several` False: only its first call counts."""

    def __init__(self, *, several: bool = True) -> None:
        self.has_called = False
        self._several = several
        self._held = ""

    def push(self, text: str) -> Piece:
        """Take the next piece of the answer."""
        self._held += text
        return self._counted(self._read())

    def finish(self) -> Piece:
        """The answer is over: what was held back."""
        piece = self._counted(self._read_rest())
        self._held = ""
        return piece

    def _counted(self, piece: Piece) -> Piece:
        calls = piece.calls if self._several else piece.calls[: 0 if self.has_called else 1]
        self.has_called = self.has_called or bool(calls)
        return Piece(piece.text, calls)

    @abstractmethod
    def _read(self) -> Piece:
        """Take from what is held what is certain by now."""

    @abstractmethod
    def _read_rest(self) -> Piece:
        """All that is held, now that nothing follows."""


class HermesReader(CallReader):
    """Calls between tags, and text around them without the white space before them."""

    def _read(self) -> Piece:
        text, calls = "", list[CalledTool]()
        while True:
            before, tag, rest = self._held.partition(_OPEN)
            if not tag:
                certain = len(before) - _doubtful(before, _OPEN)
                self._held = before[certain:]
                return Piece(text + before[:certain], tuple(calls))
            inside, closed, after = rest.partition(_CLOSE)
            if not closed:
                certain = len(before.rstrip())
                self._held = self._held[certain:]
                return Piece(text + before[:certain], tuple(calls))
            call = _call(inside)
            text += before.rstrip() if call else before + _OPEN + inside + _CLOSE
            calls += [call] if call else []
            self._held = after

    def _read_rest(self) -> Piece:
        before, tag, inside = self._held.partition(_OPEN)
        call = _call(inside) if tag else None
        if call:
            return Piece(before.rstrip(), (call,))
        return Piece("" if self.has_called and not self._held.strip() else self._held)


class WholeReader(CallReader):
    """An answer that is calls from its beginning to its end, or none: it is told apart by how it begins."""

    _begins_like: tuple[str, ...] = ()

    def _read(self) -> Piece:
        begun = self._held.lstrip()
        if any(begun.startswith(mark) or mark.startswith(begun) for mark in self._begins_like):
            return Piece()
        text, self._held = self._held, ""
        self._begins_like = ()
        return Piece(text)

    def _read_rest(self) -> Piece:
        calls = self._calls(self._held.strip()) if self._begins_like else []
        return Piece(calls=tuple(calls)) if calls else Piece(self._held)

    @abstractmethod
    def _calls(self, text: str) -> list[CalledTool]:
        """The calls that `text` is; none if it is anything else."""


class DemandedReader(WholeReader):
    """A call or a list of calls, as JSON."""

    _begins_like = ("{", "[")

    def _calls(self, text: str) -> list[CalledTool]:
        return _listed(text)


class LlamaReader(WholeReader):
    """One call after another, as JSON, with semicolons between them."""

    _begins_like = ("{", _PYTHON_TAG)

    def _calls(self, text: str) -> list[CalledTool]:
        values, rest = [], text.removeprefix(_PYTHON_TAG).strip()
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            values.append(value)
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
        calls = [_as_call(value) for value in values]
        return [call for call in calls if call] if all(calls) else []


class MistralReader(CallReader):
    """A mark after which there are only calls: a list of them, or each with its name and the mark again."""

    def _read(self) -> Piece:
        before, mark, _ = self._held.partition(_TOOL_CALLS)
        certain = len(before.rstrip()) if mark else len(before) - _doubtful(before, _TOOL_CALLS)
        self._held = self._held[certain:]
        return Piece(before[:certain])

    def _read_rest(self) -> Piece:
        _, mark, rest = self._held.partition(_TOOL_CALLS)
        calls = (_listed(rest) or _named(rest)) if mark else []
        # Mistral's templates take ids of nine letters and digits only.
        named = (CalledTool(uuid.uuid4().hex[:9], call.name, call.arguments) for call in calls)
        return Piece(calls=tuple(named)) if calls else Piece(self._held)


_READERS: dict[CallFormat, type[CallReader]] = {
    "hermes": HermesReader,
    "llama": LlamaReader,
    "mistral": MistralReader,
    "demanded": DemandedReader,
}


def call_reader(how: CallFormat, *, several: bool) -> CallReader:
    """What reads the calls of one answer."""
    return _READERS[how](several=several)


def read_calls(reader: CallReader, delta: Delta) -> Delta:
    """`delta` with what has become certain instead of its text. An answer that ends with a call ends because of it."""
    piece = reader.push(delta.text)
    text, calls, reason = piece.text, piece.calls, delta.finish_reason
    if reason:
        rest = reader.finish()
        text, calls = text + rest.text, calls + rest.calls
        reason = "tool_calls" if reason == "stop" and reader.has_called else reason
    return replace(delta, text=text, calls=calls, finish_reason=reason)


def _doubtful(text: str, mark: str) -> int:
    """How many characters at the end may be white space before `mark`, and the beginning of `mark` itself."""
    begun = max((size for size in range(len(mark)) if text.endswith(mark[:size])), default=0)
    return len(text) - len(text[: len(text) - begun].rstrip())


def _call(text: str) -> CalledTool | None:
    try:
        return _as_call(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _listed(text: str) -> list[CalledTool]:
    """The calls of a JSON list, or a single one; none if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = [_as_call(one) for one in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call] if all(calls) else []


def _named(text: str) -> list[CalledTool]:
    """The calls of `name[ARGS]{…}`, one after another with marks between them; none if it is anything else."""
    calls = []
    for part in text.split(_TOOL_CALLS):
        found = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*\})\s*", part, re.DOTALL)
        call = found and _call(f'{{"name": {json.dumps(found[1])}, "arguments": {found[2]}}}')
        if not call:
            return []
        calls.append(call)
    return calls


def _as_call(value: Any) -> CalledTool | None:
    """A call, if `value` is one: an object with a name and an object of arguments, both of which are JSON."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(arguments, dict):
        return None
    try:
        name = check_unicode(value["name"])
        text = check_unicode(json.dumps(arguments, ensure_ascii=False, allow_nan=False))
        check_shape([arguments])
    except (ValueError, RecursionError):
        return None
    return CalledTool(f"call_{uuid.uuid4().hex[:24]}", name, text)
