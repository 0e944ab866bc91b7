import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from ray_apps.serve.ending import ProperEnding
from ray_apps.serve.sse import event


def start(status: int, content_type: bytes, **headers: bytes) -> Message:
    """As Serve's proxy has it: the headers are lists."""
    more = [[name.replace("_", "-").encode(), value] for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": [[b"content-type", content_type], *more]}


def body(text: str, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


async def told(*messages: Message | Exception) -> tuple[int, dict[str, str], str, bool]:
    """What a client gets of what the proxy sends: status, headers, body, and whether it ends."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            if isinstance(message, Exception):
                raise message
            await send(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await ProperEnding(app)(scope, receive, send)
    first, *rest = sent
    assert first["type"] == "http.response.start"
    assert all(one["type"] == "http.response.body" for one in rest)
    assert all(one["more_body"] for one in rest[:-1])
    headers = {name.decode(): value.decode() for name, value in first["headers"]}
    text = b"".join(one["body"] for one in rest).decode()
    return first["status"], headers, text, not rest[-1].get("more_body", False)


@pytest.mark.parametrize("end", [[], [RuntimeError("lost")]])
@pytest.mark.parametrize("last", ["data: {}\n\n", 'data: {"a'])
async def test_a_stream_that_breaks_off_ends_with_an_error(end: list[Exception], last: str) -> None:
    begun = [start(200, b"text/event-stream; charset=utf-8"), body(event("{}"), more=True), body(last, more=True)]
    status, _, text, is_over = await told(*begun, *end)
    *before, error, nothing = text.split("\n\n")
    assert (status, is_over, nothing) == (200, True, "")
    assert before == ["data: {}", last.strip()]
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "answer_lost"


@pytest.mark.parametrize("end", [[], [RuntimeError("lost")]])
async def test_an_answer_that_never_begins_is_an_error(end: list[Exception]) -> None:
    status, headers, text, is_over = await told(*end)
    assert (status, headers["content-type"], is_over) == (503, "application/json", True)
    assert json.loads(text)["error"]["code"] == "answer_lost"


@pytest.mark.parametrize(
    ("status", "code", "retry_after"),
    [
        (404, "invalid_request", None),
        (408, "request_timeout", None),
        (429, "rate_limit_exceeded", "7"),
        (500, "internal_error", None),
        (502, "internal_error", None),
        (503, "service_unavailable", "7"),
    ],
)
async def test_what_the_proxy_refuses_is_worded_as_the_api_does(
    status: int, code: str, retry_after: str | None
) -> None:
    more: dict[str, Any] = {} if retry_after is None else {"retry_after": retry_after.encode()}
    refusal = start(status, b"text/plain; charset=utf-8", content_length=b"3", x_request_id=b"7", **more)
    got, headers, text, is_over = await told(refusal, body("no ", more=True), body("more"))
    assert (got, is_over) == (status, True)
    assert headers["content-type"] == "application/json"
    assert (headers["x-request-id"], headers.get("retry-after")) == ("7", retry_after)
    assert int(headers["content-length"]) == len(text)
    assert json.loads(text)["error"]["code"] == code


@pytest.mark.parametrize(
    ("status", "content_type"),
    [
        (200, b"application/json"),
        (200, b"text/event-stream"),
        (200, b"text/plain"),
        (400, b"text/plain"),
        (404, b"application/json"),
        (503, b"application/json"),
    ],
)
async def test_all_else_stays_as_it_is(status: int, content_type: bytes) -> None:
    found = await told(start(status, content_type), body("a\n\n", more=True), body("b"))
    assert found == (status, {"content-type": content_type.decode()}, "a\n\nb", True)


async def test_an_answer_in_one_piece_that_breaks_off_is_not_taken_for_whole() -> None:
    *_, text, is_over = await told(start(200, b"application/json", content_length=b"100"), body('{"a', more=True))
    assert (text, is_over) == ('{"a', False)
