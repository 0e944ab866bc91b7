from collections.abc import AsyncGenerator

from ray_apps.serve.errors import overloaded
from ray_apps.serve.protocol.models import ModelCard
from ray_apps.serve.sse import event_stream

CARD = ModelCard(id="line\nbreak", created=0, root="x", state="ready")


async def stream(error: Exception | None = None) -> AsyncGenerator[ModelCard, None]:
    yield CARD
    if error:
        raise error


async def test_a_stream_ends_with_done() -> None:
    written = [event async for event in event_stream(stream())]
    assert written == [f"data: {CARD.model_dump_json()}\n\n", "data: [DONE]\n\n"]
    assert written[0].count("\n") == 2


async def test_a_broken_stream_ends_with_its_error() -> None:
    written = [event async for event in event_stream(stream(overloaded()))]
    assert "rate_limit_exceeded" in written[-1]
    assert len(written) == 2


async def test_an_unforeseen_error_is_logged_and_not_told() -> None:
    written = [event async for event in event_stream(stream(KeyError("secret")))]
    assert "internal_error" in written[-1]
    assert "secret" not in written[-1]
