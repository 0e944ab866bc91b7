"""What stands before a request in Ray Serve's proxy, the process that holds the connection.

Serve's proxy goes on collecting an answer that nobody reads, and lets some headers decide what only the server may:
whether a request that was given up is cancelled, and after how long. Knows nothing of Ray.
"""

import asyncio
import re
from collections.abc import Iterator

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.ending import ProperEnding

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "ray_apps.serve.connection:middlewares"
STALL_S = 30.0
_NOT_FOR_CLIENTS = (b"x-request-disconnect-disabled", b"serve-multiplexed-model-id")
_PLAIN_NAME = re.compile(rb"[!-~]{1,128}")
_FORMS = {
    b"x-request-id": _PLAIN_NAME,
    b"x-session-id": _PLAIN_NAME,
    b"x-request-timeout-seconds": re.compile(rb"(?!0+(\.0*)?$)\d{1,6}(\.\d{1,6})?"),  # 0 would mean: never
}
_ROUTES = "/-/routes"
"""Where Serve's proxy tells everybody what it serves, without a key."""
_PIECE_BYTES = 65536


class Connection:
    """Ends an answer that its client has not read for `stall_s`, and takes the headers out that are not a client's.

    What breaks off, or is refused by the proxy itself, ends as the API's errors do.
    """

    def __init__(self, app: ASGIApp, *, stall_s: float = STALL_S) -> None:
        self._app = ProperEnding(app)
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == _ROUTES:
            scope = {**scope, "path": "/routes"}  # the application's to refuse, as any path that it does not have
        stalled = asyncio.Event()

        async def send_or_give_up(message: Message) -> None:
            for piece in _in_pieces(message):
                if stalled.is_set():
                    return
                try:
                    async with asyncio.timeout(self._stall_s):
                        await send(piece)
                except TimeoutError:
                    stalled.set()

        gone = asyncio.create_task(stalled.wait())
        try:
            await self._app(clean(scope), _until(gone, receive), send_or_give_up)
        finally:
            gone.cancel()


def _in_pieces(message: Message) -> Iterator[Message]:
    """`message`, a long body in several: the connection takes each without a look at its size."""
    body = message.get("body", b"")
    for start in range(0, max(0, len(body) - _PIECE_BYTES), _PIECE_BYTES):
        yield {**message, "body": body[start : start + _PIECE_BYTES], "more_body": True}
    yield {**message, "body": body[last:]} if (last := (len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES) > 0 else message


def _until(gone: asyncio.Task[bool], receive: Receive) -> Receive:
    """What a client sends, until it is taken for gone."""

    async def receive_or_disconnect() -> Message:
        received = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((received, gone), return_when=asyncio.FIRST_COMPLETED)
            return received.result() if received.done() else {"type": "http.disconnect"}
        finally:
            received.cancel()

    return receive_or_disconnect


def clean(scope: Scope) -> Scope:
    """`scope` with only those headers that a client may set, in a form that Serve can read."""
    headers = [(name, value) for name, value in scope["headers"] if _is_fine(name.lower(), value)]
    return {**scope, "headers": headers}


def _is_fine(name: bytes, value: bytes) -> bool:
    name = name.replace(b"_", b"-")  # Serve takes either spelling
    if name in _NOT_FOR_CLIENTS:
        return False
    return name not in _FORMS or bool(_FORMS[name].fullmatch(value))


def middlewares() -> list[Middleware]:
    """For Serve's proxy, which asks for them by the name in `CALLBACK_VARIABLE`."""
    return [Middleware(Connection)]
