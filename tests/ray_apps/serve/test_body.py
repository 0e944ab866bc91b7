import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import Message, Receive, Scope, Send

from ray_apps.serve.body import BodyLimit

LIMIT = 1000


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    assert message["more_body"] is False
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def client(*, timeout_s: float = 60) -> httpx.AsyncClient:
    app = BodyLimit(echo, max_bytes=LIMIT, timeout_s=timeout_s)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def parts(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_a_body_up_to_the_limit_arrives_whole() -> None:
    async with client() as asking:
        assert (await asking.post("/", content=b"x" * LIMIT)).content == b"x" * LIMIT
        assert (await asking.post("/", content=parts(100, 10))).content == b"x" * LIMIT
        assert (await asking.get("/")).content == b""


async def test_a_larger_body_is_a_413_with_and_without_a_length() -> None:
    async with client() as asking:
        for content in (b"x" * (LIMIT + 1), parts(100, 11)):
            response = await asking.post("/", content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"
            assert str(LIMIT) in response.json()["error"]["message"]


async def test_no_more_is_read_than_the_limit() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b"x" * 100

    async with client() as asking:
        assert (await asking.post("/", content=endless())).status_code == 413
    assert read <= LIMIT + 200


async def test_a_length_that_is_too_large_is_refused_before_anything_is_read() -> None:
    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"10000000")]}
    await BodyLimit(echo, max_bytes=LIMIT, timeout_s=1)(scope, receive, send)
    assert sent[0]["status"] == 413


async def test_a_body_that_does_not_come_is_a_408() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client(timeout_s=0.05) as asking:
        response = await asking.post("/", content=stuck())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "request_timeout"


async def test_a_client_that_leaves_before_its_body_is_there_is_not_answered() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await BodyLimit(echo, max_bytes=LIMIT, timeout_s=1)(scope, receive, send)
    assert sent == []


async def test_bodies_that_are_under_way_are_bounded_together() -> None:
    app = BodyLimit(echo, max_bytes=LIMIT, timeout_s=60)
    statuses: list[int] = []
    release = asyncio.Event()

    async def ask() -> None:
        pieces = [b"x" * (LIMIT - 1)]

        async def receive() -> Message:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(), "more_body": True}
            await release.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await app(scope, receive, send)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(40):
            tasks.create_task(ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = list(statuses)
        release.set()
    assert refused == [429] * 8
    assert statuses.count(200) == 32
    await ask()
    assert statuses[-1] == 200
