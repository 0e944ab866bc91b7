"""The body of a request: how long it may take, how large it may be, and what counts as JSON."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.errors import ApiError, body_too_large, body_too_slow, error_response, overloaded

MAX_DEPTH = 64
"""Levels of objects and lists in a body, schemas included."""
MAX_PARTS = 10_000
"""Objects and lists in a body, and names in one object. Each costs some 20 microseconds on the way to a model."""
_MAX_DIGITS = 24
_LONG_BYTES = 65536
_WHOLE_BODIES_AT_A_TIME = 32


class BodyLimit:
    """Hands a body on once it is there as a whole, and refuses one that is too large or too slow.

    `max_bytes` holds whether or not the length is announced, and is refused as soon as it is known. All bodies that are
    being received take at most 32 times as much together; beyond that, a request is told to come back later.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._num_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the body, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._receive(scope, receive)
        except ApiError as error:
            await error_response(error.failure)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _receive(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away.

        Raises:
            ApiError: it is too large or too slow, or there are too many at a time.
        """
        if _announced_length(scope) > self._max_bytes:
            raise body_too_large(self._max_bytes)
        parts: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    parts.append(part)
                    held += len(part)
                    self._num_held += len(part)
                    if held > self._max_bytes:
                        raise body_too_large(self._max_bytes)
                    if not message.get("more_body", False):
                        return b"".join(parts)
                    if self._num_held > _WHOLE_BODIES_AT_A_TIME * self._max_bytes:
                        raise overloaded()
        except TimeoutError:
            raise body_too_slow(self._timeout_s) from None
        finally:
            self._num_held -= held


def _announced_length(scope: Scope) -> int:
    """The `Content-Length`, or 0."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives `body` as one message, and then what comes after a body."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


class StrictJsonRoute(APIRoute):
    """A route whose body is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a request that reads strictly."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        return await asyncio.to_thread(parse_json, body) if len(body) > _LONG_BYTES else parse_json(body)


def parse_json(body: bytes) -> Any:
    """The value of a JSON text as RFC 8259 has it: UTF-8, no NaN, no name twice in an object, and bounded in shape.

    Raises:
        json.JSONDecodeError: it is none; the message says why.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("it is not UTF-8", "", error.start) from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise json.JSONDecodeError(f"it has more than {MAX_DEPTH} levels", "", 0) from None
    _check_shape(value)
    return value


def _check_shape(value: Any) -> None:
    level, num_parts = [value], 0
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [inner for outer in level for inner in _inside(outer)]
        num_parts += len(level)
        if num_parts > MAX_PARTS:
            raise json.JSONDecodeError(f"it has more than {MAX_PARTS} objects and lists", "", 0)
    raise json.JSONDecodeError(f"it has more than {MAX_DEPTH} levels", "", 0)


def _inside(value: Any) -> list[Any]:
    """The objects and lists directly within `value`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_PARTS:
        raise json.JSONDecodeError(f"an object has more than {MAX_PARTS} names", "", 0)
    value = dict(pairs)
    if len(value) < len(pairs):
        raise json.JSONDecodeError("a name is there twice in one object", "", 0)
    return value


def _as_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise json.JSONDecodeError(f"a number has more than {_MAX_DIGITS} digits", "", 0)
    return int(digits)


def _as_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise json.JSONDecodeError("a number is too large", "", 0)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number of JSON", "", 0)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_as_object,
    parse_int=_as_integer,
    parse_float=_as_float,
    parse_constant=_refuse_constant,
)
