"""What all routes that generate have in common: from a request to its sampling, and from pieces to whole answers."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from ray_apps.engine.protocol import SamplingParams
from ray_apps.serve.errors import generation_failed
from ray_apps.serve.jobs import Delta
from ray_apps.serve.protocol.fields import SamplingFields
from ray_apps.serve.protocol.usage import PromptTokensDetails, Usage

Deltas = AsyncGenerator[Delta, None]
Number = TypeVar("Number", int, float)


def new_id(prefix: str) -> str:
    """A name for a request, as OpenAI gives them."""
    return f"{prefix}-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Header:
    """What every chunk of one answer has in common."""

    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))


def sampling_of(
    request: SamplingFields, *, logprobs: int | None = None, json_schema: str | None = None
) -> SamplingParams:
    """How the answers to a request are sampled; `max_tokens` is left open."""
    return SamplingParams(
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
        logprobs=logprobs,
        json_schema=json_schema,
        ignore_eos=bool(request.ignore_eos),
    )


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


async def started(deltas: Deltas, num_answers: int) -> Deltas:
    """Wait for the first piece, so that an early failure still is an HTTP error; return all pieces.

    They end with the last of the answers.
    """
    first = await _next(deltas)
    return _until_ended(first, deltas, num_answers)


async def _until_ended(delta: Delta, deltas: Deltas, num_left: int) -> Deltas:
    async with aclosing(deltas):
        while True:
            yield delta
            num_left -= bool(delta.finish_reason)
            if not num_left:
                return
            delta = await _next(deltas)


async def _next(deltas: Deltas) -> Delta:
    """The next piece. A backend that stops without a reason has lost its answer."""
    try:
        return await anext(deltas)
    except StopAsyncIteration:
        raise generation_failed() from None


async def whole(deltas: Deltas, num_answers: int) -> tuple[list[list[Delta]], Usage]:
    """Wait for all pieces of each answer."""
    pieces: list[list[Delta]] = [[] for _ in range(num_answers)]
    async with aclosing(await started(deltas, num_answers)) as all_pieces:
        async for delta in all_pieces:
            pieces[delta.index].append(delta)
    return pieces, usage_of(delta)


def usage_of(last: Delta) -> Usage:
    """The counts after the last piece."""
    return Usage(
        prompt_tokens=last.num_prompt_tokens,
        completion_tokens=last.num_completion_tokens,
        total_tokens=last.num_prompt_tokens + last.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=last.num_cached_tokens),
    )
