"""The body of a request: how long it may take, and how large it may be."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.errors import ApiError, body_too_large, body_too_slow, error_response, overloaded
from ray_apps.serve.protocol.strict_json import parse_json

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
