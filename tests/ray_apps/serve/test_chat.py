from collections.abc import AsyncGenerator

import pytest

from ray_apps.serve.answers import Header, started
from ray_apps.serve.chat import chunks, complete
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import Delta


async def cut_short() -> AsyncGenerator[Delta, None]:
    yield Delta("half an ans", 1, 2)


async def nothing() -> AsyncGenerator[Delta, None]:
    for delta in ():
        yield delta


async def test_an_answer_that_stops_without_a_reason_is_no_answer() -> None:
    header = Header("m", "id")
    with pytest.raises(ApiError):
        await complete(header, cut_short())
    with pytest.raises(ApiError):
        await started(nothing(), 1)
    pieces = await started(cut_short(), 1)
    with pytest.raises(ApiError):
        [chunk async for chunk in chunks(header, pieces, include_usage=False)]
