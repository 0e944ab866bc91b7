import asyncio
from collections.abc import AsyncGenerator

import pytest

from ray_apps.serve.deadline import time_allowed, until, within
from ray_apps.serve.errors import ApiError


class Source:
    """Pieces without end, of which one may take forever."""

    def __init__(self, stuck_at: int | None = None) -> None:
        self.closed = False
        self._stuck_at = stuck_at

    async def pieces(self) -> AsyncGenerator[int, None]:
        number = 0
        try:
            while True:
                await (asyncio.Event().wait() if number == self._stuck_at else asyncio.sleep(0.001))
                yield number
                number += 1
        finally:
            self.closed = True


@pytest.mark.parametrize("stuck_at", [None, 0, 3])
async def test_when_the_time_is_up_the_work_stops_and_an_error_says_so(stuck_at: int | None) -> None:
    source = Source(stuck_at)
    seen: list[int] = []

    async def read() -> None:
        async for piece in until(source.pieces(), 0.1):
            seen.append(piece)

    with pytest.raises(ApiError, match=r"within 0\.1 s") as caught:
        await read()
    assert caught.value.failure.status == 504
    assert source.closed
    assert seen == list(range(len(seen)))
    assert len(seen) == stuck_at or stuck_at is None


async def test_without_a_limit_all_pieces_come() -> None:
    async def three() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    assert [piece async for piece in until(three(), None)] == [0, 1, 2]
    assert [piece async for piece in until(three(), 60)] == [0, 1, 2]


async def test_who_stops_reading_stops_the_work() -> None:
    source = Source()
    pieces = until(source.pieces(), 60)
    assert await anext(pieces) == 0
    await pieces.aclose()
    assert source.closed


async def test_a_timeout_of_the_work_itself_is_not_taken_for_the_deadline() -> None:
    async def fails() -> AsyncGenerator[int, None]:
        raise TimeoutError("of its own")
        yield 0

    with pytest.raises(TimeoutError, match="of its own"):
        await anext(until(fails(), 60))


async def test_a_result_that_comes_too_late_is_not_waited_for() -> None:
    async def slow() -> int:
        await asyncio.sleep(seconds)
        return 1

    seconds = 0.0
    assert await within(60, slow()) == await within(None, slow()) == 1
    seconds = 60.0
    with pytest.raises(ApiError, match=r"within 0\.05 s"):
        await within(0.05, slow())


@pytest.mark.parametrize(
    ("header", "limit_s", "seconds"),
    [(None, None, None), (None, 60, 60), ("10", None, 10), ("0.5", 60, 0.5), ("100", 60, 60)],
)
def test_the_shorter_time_counts(header: str | None, limit_s: float | None, seconds: float | None) -> None:
    assert time_allowed(header, limit_s) == pytest.approx(seconds)


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "nan"])
def test_a_time_that_is_none_is_refused_by_name(header: str) -> None:
    with pytest.raises(ApiError, match="x-request-timeout") as caught:
        time_allowed(header, 60)
    assert (caught.value.failure.status, caught.value.failure.param) == (400, "x-request-timeout")
