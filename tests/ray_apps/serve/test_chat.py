from collections.abc import AsyncGenerator

import pytest

from ray_apps.serve.chat import Header, complete, start_chunks
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import Delta


async def cut_short() -> AsyncGenerator[Delta, None]:
    yield Delta("half an ans", 1, 2)


async def nothing() -> AsyncGenerator[Delta, None]:
    for delta in ():
        yield delta


async def test_an_answer_that_stops_without_a_reason_is_no_answer() -> None:
    with pytest.raises(ApiError):
        await complete(Header("m"), cut_short())
    with pytest.raises(ApiError):
        await start_chunks(Header("m"), nothing(), include_usage=False)
    chunks = await start_chunks(Header("m"), cut_short(), include_usage=False)
    with pytest.raises(ApiError):
        [chunk async for chunk in chunks]
