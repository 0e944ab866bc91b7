"""Deadlines: how long a request may take in all."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from ray_apps.serve.errors import bad_request, deadline_exceeded

HEADER = "x-request-timeout"
"""In which a client says how many seconds it will wait."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def time_allowed(header: str | None, limit_s: float | None) -> float | None:
    """Seconds that a request may take: the server's limit, or less if its client asks for less.

    Raises:
        ApiError: the header is no positive number.
    """
    if header is None:
        return limit_s
    try:
        wanted = float(header)
    except ValueError:
        wanted = 0.0
    if not wanted > 0:
        raise bad_request(f"{HEADER}: {header!r} is not a number of seconds above 0.", param=HEADER)
    return wanted if limit_s is None else min(wanted, limit_s)


async def within(seconds: float | None, result: Awaitable[Result]) -> Result:
    """`result`, if it is there `seconds` from now; the work on it stops then.

    Raises:
        ApiError: the time is up.
    """
    try:
        async with asyncio.timeout(seconds) as timeout:
            return await result
    except TimeoutError:
        if not timeout.expired():
            raise
        raise deadline_exceeded(seconds or 0) from None


async def until(pieces: AsyncGenerator[Piece, None], seconds: float | None) -> AsyncGenerator[Piece, None]:
    """Yield `pieces` for at most `seconds` from now; then close them, which stops the work on them.

    Raises:
        ApiError: the time is up.
    """
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    async with aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout_at(deadline) as timeout:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not timeout.expired():
                    raise
                raise deadline_exceeded(seconds or 0) from None
            yield piece
