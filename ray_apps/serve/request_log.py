"""One line of JSON per request: who asked what of which model, and what became of it. No texts, unless asked for."""

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_prep.errors import ConfigError
from ray_apps.serve.auth import is_health
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.record import RequestRecord, begin

STDERR = "stderr"
_HEADER = "X-Request-Id"
_PLAIN_NAME = re.compile(r"[!-~]{1,128}")
_MAX_PATH = 200


def open_log(target: str) -> Callable[[str], object]:
    """What writes a line to `target`: `stderr`, which Ray collects, or the end of a file.

    Raises:
        ConfigError: the file cannot be written to.
    """
    if target == STDERR:
        return lambda line: print(line, file=sys.stderr, flush=True)

    def append(line: str) -> None:
        # Opened for each line, so that a file that was moved away is replaced, and one write keeps a line whole.
        with open(target, "a", encoding="ascii") as file:
            file.write(line + "\n")

    try:
        open(target, "a").close()
    except OSError as error:
        raise ConfigError(f"args.logging.requests: cannot write to {target}: {error.strerror}") from None
    return append


class Journal:
    """Writes a request that is over as a line, and tells it to `metrics`. `write` None: nothing is written."""

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        *,
        with_texts: bool = False,
        metrics: RequestMetrics | None = None,
    ) -> None:
        self._write = write
        self._with_texts = with_texts
        self._metrics = metrics

    def ended(self, record: RequestRecord) -> None:
        """Tell of one."""
        if self._metrics:
            self._metrics.ended(record)
        if self._write:
            self._write(json.dumps(describe(record, with_texts=self._with_texts)))


class RequestLog:
    """Keeps the record of each request, and tells `journal` of it when it is over.

    A client may name its request with `X-Request-Id`; the answer has that header too, unless something in front adds it
    (`names_requests` False). A look at `/health` is not told.
    """

    def __init__(self, app: ASGIApp, journal: Journal, *, names_requests: bool = True) -> None:
        self._app = app
        self._journal = journal
        self._names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(method=scope["method"], path=scope["path"])
        is_told = not is_health(scope)  # before what is behind it changes the scope
        name = Headers(scope=scope).get(_HEADER, "")
        if _PLAIN_NAME.fullmatch(name):
            record.request_id = name
        begin(record)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self._names_requests:
                    MutableHeaders(scope=message)[_HEADER] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            if is_told:
                self._journal.ended(record)


def describe(record: RequestRecord, *, with_texts: bool) -> dict[str, Any]:
    """The fields of a line. A status of null: the client left before there was one."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "key": record.key_name,
        "method": record.method,
        "path": record.path[:_MAX_PATH],
        "status": record.status,
        "model": record.model,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "completion_tokens": record.num_completion_tokens,
        "queue_s": _rounded(record.queue_s),
        "first_token_s": _rounded(record.first_token_s),
        "duration_s": _rounded(record.elapsed_s),
        "finish_reasons": record.finish_reasons,
    }
    return {**line, "messages": record.messages, "answers": record.answers} if with_texts else line


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
