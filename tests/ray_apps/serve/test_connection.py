import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.connection import Connection, clean, middlewares


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """The port of a real server for `app`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def request(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    await writer.drain()
    return reader, writer


class Endless:
    """Streams until its client is gone, as Serve's proxy does: it listens and sends at the same time."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()

        listening = asyncio.create_task(listen())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 60_000, "more_body": True})
            self.num_sent += 1
            await asyncio.sleep(0)
        await listening


async def test_a_client_that_reads_nothing_is_given_up() -> None:
    app = Endless()
    async with listening(Connection(app, stall_s=0.3)) as port:
        _, writer = await request(port)
        await asyncio.wait_for(app.gone.wait(), 20)
        writer.close()
    assert app.num_sent * 60_000 < 20_000_000  # What the sockets of this machine hold.


async def test_a_client_that_reads_slowly_is_not() -> None:
    app = Endless()
    async with listening(Connection(app, stall_s=5)) as port:
        reader, writer = await request(port)
        for _ in range(100):
            assert await reader.read(10_000)
        assert not app.gone.is_set()
        writer.close()
        await asyncio.wait_for(app.gone.wait(), 20)


async def test_a_long_answer_is_written_in_pieces_and_arrives_whole() -> None:
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"200000")]})
        await send({"type": "http.response.body", "body": bytes(range(200)) * 1000})

    async def sized(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            sizes.append(len(message.get("body", b"")))
            await send(message)

        await Connection(app, stall_s=5)(scope, receive, note)

    async with listening(sized) as port:
        reader, writer = await request(port)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(200_000) == bytes(range(200)) * 1000
        writer.close()
    assert max(sizes) == 65536


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 131073])
async def test_pieces_add_up(size: int) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": False})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await Connection(app, stall_s=5)({"type": "http", "path": "/", "headers": []}, receive, send)
    assert sum(len(message["body"]) for message in sent) == size
    assert [message["more_body"] for message in sent] == [True] * (len(sent) - 1) + [False]


def test_headers_that_serve_would_obey_do_not_come_from_a_client() -> None:
    kept = [
        (b"host", b"x"),
        (b"authorization", b"Bearer \xff"),
        (b"x-session-id", b"user:7=a"),
        (b"x-request-id", b"1"),
        (b"x_session_id", b"user:7=a"),
    ]
    dropped = [
        (b"x-request-disconnect-disabled", b"?1"),
        (b"x-request-timeout-seconds", b"0.00"),
        (b"x-request-timeout-seconds", b"-1"),
        (b"x-request-timeout-seconds", b"\xff"),
        (b"X-Request-Timeout-Seconds", b"0"),
        (b"serve_multiplexed_model_id", b"other"),
        (b"serve-multiplexed-model-id", b"other"),
        (b"x-request-id", b"\xff"),
        (b"x-request-id", b"x" * 129),
        (b"x-session-id", b"two words"),
        (b"x_session_id", b"\xff"),
        (b"X_Session-Id", b"two words"),
    ]
    assert clean({"type": "http", "headers": kept + dropped})["headers"] == kept


def test_serve_takes_it_as_it_is() -> None:
    (middleware,) = middlewares()
    assert middleware.cls is Connection
