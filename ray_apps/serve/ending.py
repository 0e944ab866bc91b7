"""How an answer ends in Ray Serve's proxy, whatever becomes of the process that gives it. Knows nothing of Ray.

Serve's proxy says nothing more once that process is gone: an answer breaks off, or none begins. What the proxy refuses
by itself, it refuses in plain text.
"""

import logging
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.errors import (
    Failure,
    answer_lost,
    error_json,
    error_response,
    generation_failed,
    overloaded,
    timed_out,
    unavailable,
    unknown_path,
)
from ray_apps.serve.sse import event

logger = logging.getLogger(__name__)

_REFUSALS = {408: timed_out, 429: overloaded, 503: unavailable}
_OF_A_BODY = ("content-type", "content-length")


class ProperEnding:
    """Ends what `app` leaves without an end by an error of the API, and words its errors as the API does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        try:
            await self._app(scope, receive, answer.pass_on)
        except Exception:
            logger.exception("a request failed in the proxy")
        await answer.end()


class _Answer:
    """What a client has been told of one answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._has_begun = False
        self._is_stream = False
        self._is_over = False
        self._between_events = True

    async def pass_on(self, message: Message) -> None:
        if self._is_over:  # The rest of what is worded otherwise.
            return
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            failure = _failure(message["status"], self._scope["path"])
            if failure and not headers.get("content-type", "").startswith("application/json"):
                await self._refuse(failure, headers)
                return
            self._has_begun = True
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._is_over = not message.get("more_body", False)
            if body := message.get("body"):
                self._between_events = body.endswith(b"\n\n")
        await self._send(message)

    async def end(self) -> None:
        """Say that the rest is lost, where that can be said and is so."""
        if self._is_over:
            return
        lost = answer_lost().failure
        if not self._has_begun:
            await self._refuse(lost, Headers())
        elif self._is_stream:
            text = event(error_json(lost))
            body = (text if self._between_events else f"\n\n{text}").encode()
            await self._send({"type": "http.response.body", "body": body})

    async def _refuse(self, failure: Failure, headers: Headers) -> None:
        self._is_over = True
        response = error_response(failure)
        response.headers.update({name: value for name, value in headers.items() if name not in _OF_A_BODY})
        await response(self._scope, self._receive, self._send)


def _failure(status: int, path: str) -> Failure | None:
    """What the API says of a status that Serve may have answered with."""
    if status == 404:
        return unknown_path(path).failure
    if status in _REFUSALS:
        return _REFUSALS[status]().failure
    return replace(generation_failed().failure, status=status) if status >= 500 else None
