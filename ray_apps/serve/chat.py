"""`POST /v1/chat/completions`: from a request to a job, and from pieces of answers to a completion or to chunks."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from ray_apps.engine.protocol import SamplingParams
from ray_apps.serve.errors import generation_failed
from ray_apps.serve.jobs import ChatPrompt, Delta, Job, ScoredToken
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)

Deltas = AsyncGenerator[Delta, None]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Header:
    """What every chunk of one answer has in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def make_job(request: ChatCompletionRequest, request_id: str, adapter: str | None = None) -> Job:
    """What the request asks the backend to do."""
    sampling = SamplingParams(
        max_tokens=0,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        stop=tuple(request.stop),
        seed=request.seed,
        top_k=max(0, _or(request.top_k, 0)),
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias=tuple(sorted((request.logit_bias or {}).items())),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logprobs=_or(request.top_logprobs, 0) if request.logprobs else None,
        json_schema=None if request.response_format is None else request.response_format.schema_text,
    )
    prompt = ChatPrompt(tuple(message.to_template() for message in request.messages))
    return Job(request_id, (prompt,), request.answer_limit, sampling, _or(request.n, 1), adapter=adapter)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


async def complete(header: Header, deltas: Deltas, num_answers: int = 1) -> ChatCompletion:
    """Wait for the whole of all answers."""
    pieces: list[list[Delta]] = [[] for _ in range(num_answers)]
    num_left = num_answers
    async with aclosing(deltas):
        async for delta in deltas:
            pieces[delta.index].append(delta)
            num_left -= bool(delta.finish_reason)
            if not num_left:
                choices = [_choice(index, answer) for index, answer in enumerate(pieces)]
                return ChatCompletion(**vars(header), choices=choices, usage=_usage(delta))
    raise generation_failed()  # A backend that stops without a reason has lost its answer.


def _choice(index: int, answer: list[Delta]) -> Choice:
    reason = answer[-1].finish_reason
    assert reason is not None
    content = "".join(delta.text for delta in answer)
    scored = tuple(chain.from_iterable(delta.logprobs for delta in answer))
    return Choice(
        index=index, message=AssistantMessage(content=content), logprobs=_logprobs(scored), finish_reason=reason
    )


async def start_chunks(
    header: Header, deltas: Deltas, *, include_usage: bool, num_answers: int = 1
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """Wait for the first piece, so that an early failure still is an HTTP error; return the chunks from there on."""
    first = await _next(deltas)
    return _chunks(header, first, deltas, include_usage=include_usage, num_answers=num_answers)


async def _chunks(
    header: Header, first: Delta, deltas: Deltas, *, include_usage: bool, num_answers: int
) -> AsyncGenerator[ChatCompletionChunk, None]:
    for index in range(num_answers):
        yield _chunk(header, ChunkChoice(index=index, delta={"role": "assistant", "content": ""}))
    num_left = num_answers
    async with aclosing(deltas):
        delta = first
        while True:
            if delta.text or delta.logprobs:
                content, logprobs = {"content": delta.text}, _logprobs(delta.logprobs)
                yield _chunk(header, ChunkChoice(index=delta.index, delta=content, logprobs=logprobs))
            if delta.finish_reason:
                yield _chunk(header, ChunkChoice(index=delta.index, delta={}, finish_reason=delta.finish_reason))
                num_left -= 1
            if not num_left:
                break
            delta = await _next(deltas)
    if include_usage:
        yield ChatCompletionChunk(**vars(header), choices=[], usage=_usage(delta))


async def _next(deltas: Deltas) -> Delta:
    try:
        return await anext(deltas)
    except StopAsyncIteration:
        raise generation_failed() from None


def _chunk(header: Header, choice: ChunkChoice) -> ChatCompletionChunk:
    return ChatCompletionChunk(**vars(header), choices=[choice])


def _logprobs(scored: tuple[ScoredToken, ...]) -> Logprobs | None:
    if not scored:
        return None
    return Logprobs(
        content=[
            TokenLogprob(**_token(one), top_logprobs=[TopLogprob(**_token(other)) for other in one.likeliest])
            for one in scored
        ]
    )


def _token(one: ScoredToken) -> dict[str, object]:
    """A token as OpenAI writes it; one that is no whole character is told apart by its bytes."""
    return {"token": one.token.decode(errors="replace"), "bytes": list(one.token), "logprob": one.logprob}


def _usage(last: Delta) -> Usage:
    return Usage(
        prompt_tokens=last.num_prompt_tokens,
        completion_tokens=last.num_completion_tokens,
        total_tokens=last.num_prompt_tokens + last.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=last.num_cached_tokens),
    )
