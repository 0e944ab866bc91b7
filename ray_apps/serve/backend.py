"""Between the API and an engine: a chat goes in, pieces of the answer come out.

The API asks a `ChatBackend`. `EngineBackend` is one on an engine in the same process; the deployments put a process
boundary between the two, which only plain data crosses.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from data_prep.errors import ModelError
from ray_apps.engine.protocol import Engine, EngineError, FinishReason, GenerationRequest, SamplingParams
from ray_apps.serve.errors import bad_request, context_length_exceeded, generation_failed


@dataclass(frozen=True, slots=True)
class ChatJob:
    """One chat to answer. `max_tokens` None means as long as the context allows; the rest is as in `SamplingParams`."""

    request_id: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """The next piece of an answer, and the tokens read and written so far."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: FinishReason | None = None


class ChatBackend(Protocol):
    """Whatever answers chats."""

    def chat(self, job: ChatJob) -> AsyncGenerator[ChatDelta, None]:
        """Yield the answer piece by piece; closing the generator stops the work.

        Raises:
            ApiError: before the first piece or after any.
        """
        ...

    async def is_ready(self) -> bool:
        """Whether a chat can be answered now."""
        ...


class EngineBackend:
    """Answers chats with an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def chat(self, job: ChatJob) -> AsyncGenerator[ChatDelta, None]:
        """Yield the answer to `job`."""
        # Encoding a long chat takes a while; other answers go on meanwhile.
        prompt_ids = await asyncio.to_thread(self._encode, job)
        budget = answer_budget(len(prompt_ids), job.max_tokens, self._engine.max_model_len)
        sampling = SamplingParams(budget, job.temperature, job.top_p, job.stop, job.seed)
        request = GenerationRequest(job.request_id, tuple(prompt_ids), sampling)
        num_tokens = 0
        try:
            async with aclosing(self._engine.generate(request)) as deltas:
                async for delta in deltas:
                    num_tokens += len(delta.token_ids)
                    yield ChatDelta(delta.text, len(prompt_ids), num_tokens, delta.finish_reason)
        except EngineError:
            raise generation_failed() from None

    async def is_ready(self) -> bool:
        """Whether the engine is healthy."""
        try:
            await self._engine.check_health()
        except EngineError:
            return False
        return True

    def _encode(self, job: ChatJob) -> list[int]:
        try:
            return self._engine.encode_chat(job.messages)
        except (ModelError, ValueError) as error:
            raise bad_request(str(error), param="messages") from None


def answer_budget(num_prompt: int, wanted: int | None, limit: int) -> int:
    """How many tokens the answer may have, with a prompt of `num_prompt` and at most `limit` in all.

    Raises:
        ApiError: they do not fit.
    """
    room = limit - num_prompt
    if room < 1 or (wanted or 0) > room:
        raise context_length_exceeded(num_prompt, wanted or 0, limit)
    return wanted or room
