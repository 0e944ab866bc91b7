"""Server-sent events: how a stream is written, also where it breaks off."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

from ray_apps.serve.errors import error_json, failure_of

DONE = "[DONE]"

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; a stream of events where `stream` is true.", "content": {"text/event-stream": {}}}
}
"""What a description of the API says of a route that may stream."""


def event(data: str) -> str:
    """One event. `data` is a single line."""
    return f"data: {data}\n\n"


async def event_stream(chunks: AsyncGenerator[BaseModel, None]) -> AsyncGenerator[str, None]:
    """Write each chunk as an event, then `[DONE]`.

    The headers are out by now, so a failure is told by an event with an error, and nothing follows it.
    """
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield event(chunk.model_dump_json())
    except Exception as error:
        yield event(error_json(failure_of(error)))
    else:
        yield event(DONE)
