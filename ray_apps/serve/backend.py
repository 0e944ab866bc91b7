"""Between the API and an engine: a chat goes in, pieces of the answer come out.

The API asks a `ChatBackend`. `EngineBackend` is one on an engine in the same process; the deployments put a process
boundary between the two, which only plain data crosses.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from data_prep.errors import ModelError
from ray_apps.engine.protocol import (
    Engine,
    EngineError,
    FinishReason,
    GenerationRequest,
    SamplingError,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)
from ray_apps.serve.errors import bad_request, context_length_exceeded, generation_failed


@dataclass(frozen=True, slots=True)
class ChatJob:
    """One chat to answer, `num_answers` times. `max_tokens` None: each as long as the context allows.

    `sampling` holds the rest; its own `max_tokens` is not looked at.
    """

    request_id: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=0))
    num_answers: int = 1


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """The bytes of a token of an answer and its log probability, with those that were likeliest in its place."""

    token: bytes
    logprob: float
    likeliest: tuple["ScoredToken", ...] = ()


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """The next piece of answer `index`, and the tokens read and written so far, those of other answers included."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: tuple[ScoredToken, ...] = ()
    num_cached_tokens: int = 0


class ChatBackend(Protocol):
    """Whatever answers chats."""

    def chat(self, job: ChatJob) -> AsyncGenerator[ChatDelta, None]:
        """Yield the answers piece by piece; closing the generator stops the work.

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
        """Yield the answers to `job`."""
        # Encoding a long chat takes a while, as a grammar does; other answers go on meanwhile.
        prompt_ids = tuple(await asyncio.to_thread(self._encode, job))
        budget = answer_budget(len(prompt_ids), job.max_tokens, self._engine.max_model_len)
        answers = [
            self._engine.generate(GenerationRequest(f"{job.request_id}-{index}", prompt_ids, sampling))
            for index, sampling in enumerate(_samplings(replace(job.sampling, max_tokens=budget), job.num_answers))
        ]
        num_tokens = 0
        try:
            async with aclosing(merged(answers)) as deltas:
                async for index, delta in deltas:
                    num_tokens += len(delta.token_ids)
                    logprobs = tuple(self._score(one) for one in delta.logprobs)
                    counts = (len(prompt_ids), num_tokens)
                    yield ChatDelta(delta.text, *counts, delta.finish_reason, index, logprobs, delta.num_cached)
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
            self._engine.check_sampling(job.sampling)
            return self._engine.encode_chat(job.messages)
        except SamplingError as error:
            raise bad_request(f"{error.param}: {error}", param=error.param) from None
        except (ModelError, ValueError) as error:
            raise bad_request(str(error), param="messages") from None

    def _score(self, one: TokenLogprob) -> ScoredToken:
        piece = self._engine.token_bytes
        likeliest = tuple(ScoredToken(piece(token), logprob) for token, logprob in one.likeliest)
        return ScoredToken(piece(one.token_id), one.logprob, likeliest)


def _samplings(sampling: SamplingParams, num_answers: int) -> list[SamplingParams]:
    """Those of each answer: with a seed, different answers that are the same the next time."""
    if sampling.seed is None:
        return [sampling] * num_answers
    return [replace(sampling, seed=_wrapped(sampling.seed + index)) for index in range(num_answers)]


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


async def merged(answers: list[AsyncGenerator[TokenDelta, None]]) -> AsyncGenerator[tuple[int, TokenDelta], None]:
    """The pieces of several answers as they come, with the number of the answer. All end when one fails."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    pieces: asyncio.Queue[tuple[int, TokenDelta | Exception | None]] = asyncio.Queue()

    async def pass_on(index: int) -> None:
        try:
            async with aclosing(answers[index]) as deltas:
                async for delta in deltas:
                    pieces.put_nowait((index, delta))
            pieces.put_nowait((index, None))
        except Exception as error:
            pieces.put_nowait((index, error))

    tasks = [asyncio.create_task(pass_on(index)) for index in range(len(answers))]
    try:
        num_left = len(answers)
        while num_left:
            index, piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                num_left -= 1
            else:
                yield index, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer_budget(num_prompt: int, wanted: int | None, limit: int) -> int:
    """How many tokens the answer may have, with a prompt of `num_prompt` and at most `limit` in all.

    Raises:
        ApiError: they do not fit.
    """
    room = limit - num_prompt
    if room < 1 or (wanted or 0) > room:
        raise context_length_exceeded(num_prompt, wanted or 0, limit)
    return wanted or room
