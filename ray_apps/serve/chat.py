"""`POST /v1/chat/completions`: from a request to a job, and from pieces of an answer to a completion or to chunks."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from ray_apps.serve.backend import ChatDelta, ChatJob
from ray_apps.serve.errors import generation_failed
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Usage,
)

Deltas = AsyncGenerator[ChatDelta, None]


@dataclass(frozen=True)
class Header:
    """What every chunk of one answer has in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def make_job(request: ChatCompletionRequest, request_id: str) -> ChatJob:
    """What the request asks the backend to do."""
    return ChatJob(
        request_id=request_id,
        messages=tuple(message.to_template() for message in request.messages),
        max_tokens=request.answer_limit,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        stop=tuple(request.stop),
        seed=request.seed,
    )


async def complete(header: Header, deltas: Deltas) -> ChatCompletion:
    """Wait for the whole answer."""
    pieces: list[str] = []
    async with aclosing(deltas):
        async for delta in deltas:
            pieces.append(delta.text)
            if delta.finish_reason:
                choice = Choice(message=AssistantMessage(content="".join(pieces)), finish_reason=delta.finish_reason)
                return ChatCompletion(**vars(header), choices=[choice], usage=_usage(delta))
    raise generation_failed()  # A backend that stops without a reason has lost its answer.


async def start_chunks(
    header: Header, deltas: Deltas, *, include_usage: bool
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """Wait for the first piece, so that an early failure still is an HTTP error; return the chunks from there on."""
    first = await _next(deltas)
    return _chunks(header, first, deltas, include_usage=include_usage)


async def _chunks(
    header: Header, first: ChatDelta, deltas: Deltas, *, include_usage: bool
) -> AsyncGenerator[ChatCompletionChunk, None]:
    yield _chunk(header, ChunkChoice(delta={"role": "assistant", "content": ""}))
    async with aclosing(deltas):
        delta = first
        while True:
            if delta.text:
                yield _chunk(header, ChunkChoice(delta={"content": delta.text}))
            if delta.finish_reason:
                break
            delta = await _next(deltas)
    yield _chunk(header, ChunkChoice(delta={}, finish_reason=delta.finish_reason))
    if include_usage:
        yield ChatCompletionChunk(**vars(header), choices=[], usage=_usage(delta))


async def _next(deltas: Deltas) -> ChatDelta:
    try:
        return await anext(deltas)
    except StopAsyncIteration:
        raise generation_failed() from None


def _chunk(header: Header, choice: ChunkChoice) -> ChatCompletionChunk:
    return ChatCompletionChunk(**vars(header), choices=[choice])


def _usage(delta: ChatDelta) -> Usage:
    total = delta.num_prompt_tokens + delta.num_completion_tokens
    return Usage(
        prompt_tokens=delta.num_prompt_tokens, completion_tokens=delta.num_completion_tokens, total_tokens=total
    )
