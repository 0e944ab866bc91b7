"""An OpenAI-compatible endpoint over real HTTP, whose every answer a test decides."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GONE = "the connection is cut"
CUT_SHORT = "half of an answer"


@dataclass
class Raw:
    """What is sent as it is."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None, finish_reason: str | None = "stop") -> Raw:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    body = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}
    return Raw(content=json.dumps(body).encode())


def refusal(status: int, message: str, **headers: str) -> Raw:
    """An error in OpenAI's form."""
    return Raw(status, json.dumps({"error": {"message": message}}).encode(), headers)


Act = Callable[[dict[str, Any]], Raw | str]


class Endpoint:
    """`act` is told each request's body. `asked`: those bodies; `most_at_once`: how many were under way together."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.pause_s = 0.0
        self.most_at_once = self._num_now = 0
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, body: dict[str, Any], key: str | None) -> Raw | str:
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
        time.sleep(self.pause_s)
        try:
            return self.act(body)
        finally:
            with self._lock:
                self._num_now -= 1


@contextmanager
def serving(act: Act) -> Iterator[Endpoint]:
    """The endpoint while the block runs."""
    endpoint = Endpoint(act)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = endpoint.answer(body, self.headers.get("Authorization"))
            if said == GONE:
                self.close_connection = True
                return
            raw = said if isinstance(said, Raw) else completion(said)
            length = len(raw.content) + (500 if said == CUT_SHORT else 0)
            self.send_response(raw.status)
            for name, value in {"Content-Length": str(length), **raw.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw.content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def last(body: dict[str, Any]) -> str:
    """What was said last."""
    return str(body["messages"][-1]["content"])
