"""Streaming chats against an OpenAI-compatible server, by a client light enough to share the machine with it.

One process, one event loop, HTTP/1.1 by hand: what it takes of the processor is a fraction of what a client library
takes, and is measured like every other hop.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Body = Mapping[str, Any]

NUM_TOKENS = 64
"""Tokens of every answer."""
_SETTLE_S = 5.0
_PAUSE_S = 0.25


def requests_per_client(num_clients: int) -> int:
    """How many requests each of so many clients sends: few clients send more, for a measure that is long enough."""
    return max(1, 4 // num_clients)


@dataclass(frozen=True)
class Answer:
    """One streamed answer. `arrivals`: when text came, in seconds after the request was sent; one per read."""

    arrivals: tuple[float, ...]
    seconds: float
    text: str
    finish_reason: str | None
    usage: Mapping[str, Any] | None

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.arrivals[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between arrivals of text, whether they bring one token or several."""
        return [later - sooner for sooner, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """What came of a number of clients that each send their requests one after another."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Tokens written."""
        return len(self.answers) * NUM_TOKENS

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second."""
        return self.num_tokens / self.seconds

    def ttft(self, percent: int) -> float:
        """A percentile of the seconds to the first text."""
        return percentile([answer.ttft for answer in self.answers], percent)

    def gap(self, percent: int) -> float:
        """A percentile of the seconds between arrivals of text."""
        return percentile([gap for answer in self.answers for gap in answer.gaps], percent)


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation between the values, the extreme ones included."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def drive(url: str, clients: Sequence[Sequence[Body]], *, length: bool = True) -> Load:
    """Let all `clients` send their requests at once, each its own one after another.

    Raises:
        RuntimeError: the server refused one, broke off, or (with `length`) ended before the most tokens were written.
    """
    started = time.perf_counter()
    answers = await asyncio.gather(*(_client(url, bodies, length) for bodies in clients))
    return Load(tuple(answer for some in answers for answer in some), time.perf_counter() - started)


async def _client(url: str, bodies: Sequence[Body], length: bool) -> list[Answer]:
    answers = []
    for body in bodies:
        answers.append(await ask(url, body))
        if length and answers[-1].finish_reason != "length":
            raise RuntimeError(f"{url} ended an answer early: {answers[-1]}")
    return answers


async def ask(url: str, body: Body) -> Answer:
    """Send one chat to be streamed, on a connection of its own, and read the answer."""
    arrivals, pieces, reason, usage = [], [], None, None
    sent = time.perf_counter()
    async for events in _events(url, body):
        has_text = False
        for event in events:
            if "error" in event:
                raise RuntimeError(f"{url} broke off: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                if text := choice["delta"].get("content"):
                    has_text = True
                    pieces.append(text)
        if has_text:
            arrivals.append(time.perf_counter() - sent)
    return Answer(tuple(arrivals), time.perf_counter() - sent, "".join(pieces), reason, usage)


async def _events(url: str, body: Body) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of a stream, those that arrive together at a time."""
    async with _sent(url, {**body, "stream": True}) as (head, reader):
        if _status(head) != 200:
            raise RuntimeError(f"{url} refused: {head}{(await reader.read()).decode()}")
        rest = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            *lines, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
            data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
            yield [json.loads(one) for one in data if one != b"[DONE]"]


async def refusals(url: str, held: Sequence[Body], body: Body, *, num_clients: int, each: int) -> list[float]:
    """Seconds until each request is refused that `num_clients` send, one after another, while `held` take all places.

    `held` are one more than there are places for, so that the first refusal tells that all are taken; a while later
    their prompts are read, and answers are written. What is left of them is given up at the end.

    Raises:
        RuntimeError: the server answered otherwise.
    """
    holding = [asyncio.create_task(ask(url, one)) for one in held]
    try:
        await asyncio.wait(holding, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_SETTLE_S)
        clients = await asyncio.gather(*(_refused(url, body, each) for _ in range(num_clients)))
        return [seconds for some in clients for seconds in some]
    finally:
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)


async def _refused(url: str, body: Body, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        seconds.append(await refusal_s(url, body))
        await asyncio.sleep(_PAUSE_S)  # Refusals are to fall on many steps of the model.
    return seconds


async def refusal_s(url: str, body: Body) -> float:
    """Seconds until the whole of a 429 with `Retry-After` is there."""
    sent = time.perf_counter()
    async with _sent(url, body) as (head, reader):
        text = (await reader.read()).decode()
    seconds = time.perf_counter() - sent
    if _status(head) != 429 or "\nretry-after:" not in head.lower() or not json.loads(text)["error"]:
        raise RuntimeError(f"{url} did not refuse: {head}{text}")
    return seconds


@asynccontextmanager
async def _sent(url: str, body: Body) -> AsyncIterator[tuple[str, asyncio.StreamReader]]:
    """Send a chat on a connection of its own; the head of the response, and where the rest comes from."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        content = json.dumps(body).encode()
        head = f"POST {where.path}/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        yield (await reader.readuntil(b"\r\n\r\n")).decode(), reader
    finally:
        writer.close()


def _status(head: str) -> int:
    return int(head.split(" ", 2)[1])
