"""An OpenAI-compatible endpoint over real HTTP that does as it is told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any], dict[str, str]]


class Script:
    """What the endpoint answers: texts, or refusals as (status, body, headers); what it was asked."""

    def __init__(self) -> None:
        self.replies: list[str | Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["first", "second"]
        self.pause_s = 0.0
        self.breaks_off = False
        self.has_left = threading.Event()
        """The client has gone in the middle of an answer."""


@contextmanager
def endpoint(script: Script) -> Iterator[str]:
    """Its address while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in script.models]}, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.requests.append(body)
            script.keys.append(self.headers.get("Authorization"))
            reply = script.replies.pop(0) if script.replies else "echo: " + body["messages"][-1]["content"]
            if isinstance(reply, tuple):
                self._send(*reply)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                self._stream(reply)
            except (BrokenPipeError, ConnectionResetError):
                script.has_left.set()

        def _stream(self, text: str) -> None:
            pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
            for piece in pieces:
                self._event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                time.sleep(script.pause_s)
            if script.breaks_off:
                return
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(pieces)}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()

        def _send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI tells it."""
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}, headers
