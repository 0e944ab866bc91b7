"""A `Backend` on an engine in the same process."""

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray_apps.engine.protocol import (
    Engine,
    EngineError,
    EngineStoppedError,
    GenerationRequest,
    SamplingError,
    UnsupportedError,
)
from ray_apps.machine import usable_cpus
from ray_apps.serve.encoding import Encoding
from ray_apps.serve.errors import ApiError, bad_request, context_length_exceeded, generation_failed, unavailable
from ray_apps.serve.gathering import gathered
from ray_apps.serve.jobs import (
    ChatPrompt,
    Delta,
    EmbeddingJob,
    Embeddings,
    Job,
    ModelState,
    Prompt,
    TokenizeJob,
    Tokens,
    Truncation,
)
from ray_apps.serve.tool_calls import CallReader, call_reader, read_calls
from ray_apps.serve.tools import call_format
from ray_apps.serve.truncation import Messages, answer_budget, answer_room, shortest_cut
from ray_apps.serve.work import Watch, Work

STREAM_INTERVAL_S = 0.2

_PIECE_S = 0.0025
"""Of a core, to send one piece to its client."""
_SENDING_SHARE = 0.1
"""Of all cores, for pieces of streams: where they also run the model, what they take is taken from it."""


class EngineBackend:
    """Does jobs with an engine.

    `stream_interval_s`: how long at most what is ready of a stream waits, to be told together with what follows.
    """

    def __init__(
        self, engine: Engine, *, truncate: Truncation = "off", stream_interval_s: float = STREAM_INTERVAL_S
    ) -> None:
        self._engine = engine
        self._encoding = Encoding(engine)
        self._truncate = truncate
        self._stream_interval_s = stream_interval_s
        self._num_streams = 0
        self._pause_for_each_s = _PIECE_S / (_SENDING_SHARE * usable_cpus())

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield the answers to `job`."""
        async with aclosing(self.answer(await self.prepare(job))) as deltas:
            async for delta in deltas:
                yield delta

    async def prepare(self, job: Job) -> Work:
        """What is to be done for `job`.

        Raises:
            ApiError: it cannot be.
        """
        watch = Watch()
        # Encoding a long chat takes a while, as a grammar does; other answers go on meanwhile.
        cut, prompts = await asyncio.to_thread(self._prepare, job)
        return Work(job, prompts, list(self._requests(job, prompts)), num_messages(job) - num_messages(cut), watch)

    async def answer(self, work: Work) -> AsyncGenerator[Delta, None]:
        """Yield the answers to a job that is prepared."""
        job, prompts, watch, num_dropped = work.job, work.prompts, work.watch, work.num_dropped
        answers = [watch.seeing(self._engine.generate(request)) for request in work.requests]
        num_prompt, num_completion, num_cached = work.num_prompt_tokens, 0, 0
        begun: set[int] = set()
        readers = self._call_readers(job, len(answers))
        self._num_streams += job.streams
        try:
            async with aclosing(gathered(answers, self._pause_s if job.streams else None)) as deltas:
                async for index, delta in deltas:
                    text, logprobs = delta.text, [self._encoding.score(one) for one in delta.logprobs]
                    number, answer = divmod(index, job.num_answers)
                    if index not in begun:
                        begun.add(index)
                        num_cached += 0 if answer else delta.num_cached
                        if job.echo:
                            text = self._encoding.text(job.prompts[number], prompts[number]) + text
                            logprobs = self._encoding.score_prompt(job, prompts[number], delta) + logprobs
                    num_completion += len(delta.token_ids)
                    told = Delta(text, num_prompt, num_completion, delta.finish_reason, index, tuple(logprobs))
                    told = replace(
                        told,
                        num_cached_tokens=num_cached,
                        worked_s=watch.seconds,
                        first_worked_s=watch.first_s,
                        num_dropped=num_dropped,
                    )
                    yield read_calls(readers[index], told) if readers else told
        except SamplingError as error:
            raise _refused(error, job) from None
        except (EngineError, UnsupportedError) as error:
            raise _api_error(error, "model") from None
        finally:
            self._num_streams -= job.streams

    def _pause_s(self) -> float:
        """Between two pieces of a stream: none to speak of where there are few for this machine."""
        return min(self._stream_interval_s, self._pause_for_each_s * self._num_streams)

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """Embed the texts, side by side with whatever else the engine does."""
        return await self.embed_prompts(await self.encode(job))

    async def encode(self, job: EmbeddingJob) -> list[tuple[int, ...]]:
        """The ids of the texts to embed.

        Raises:
            ApiError: they cannot be embedded.
        """
        if job.adapter is not None:
            raise bad_request("model: embeddings are those of the model without an adapter", param="model")
        prompts = await asyncio.to_thread(lambda: [self._encoding.encode(prompt, job.param) for prompt in job.prompts])
        for prompt_ids in prompts:
            if len(prompt_ids) > self._engine.max_model_len:
                raise context_length_exceeded(len(prompt_ids), 0, self._engine.max_model_len, param=job.param)
        return prompts

    async def embed_prompts(self, prompts: list[tuple[int, ...]]) -> Embeddings:
        """Embed what is in ids."""
        try:
            means = await _gather(self._engine.embed(prompt_ids) for prompt_ids in prompts)
        except (EngineError, UnsupportedError) as error:
            raise _api_error(error, "model") from None
        return Embeddings(tuple(map(_unit, means)), sum(map(len, prompts)))

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """The ids of the prompt."""
        self._encoding.check_tools(job.prompt)
        token_ids = await asyncio.to_thread(self._encoding.encode, job.prompt, job.param, may_be_empty=True)
        return Tokens(token_ids, self._engine.max_model_len)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids."""
        self._encoding.check_ids(token_ids, "tokens")
        return await asyncio.to_thread(self._engine.decode, token_ids)

    async def state(self) -> ModelState:
        """Whether the engine is healthy."""
        try:
            await self._engine.check_health()
        except EngineError:
            return "unavailable"
        return "ready"

    def _call_readers(self, job: Job, num_answers: int) -> list[CallReader]:
        """One for each answer, where tools are offered."""
        how = call_format(self._engine.chat_template or "")
        if job.calls is None or how is None:
            return []
        return [
            call_reader("demanded" if job.calls.demanded else how, several=job.calls.several)
            for _ in range(num_answers)
        ]

    def _prepare(self, job: Job) -> tuple[Job, list[tuple[int, ...]]]:
        """The job without messages that there is no room for, and its prompts in ids.

        Raises:
            ApiError: the answers cannot be sampled as asked, or a prompt cannot be used.
        """
        for prompt in job.prompts:
            self._encoding.check_tools(prompt)
        try:
            self._engine.check_sampling(job.sampling)
        except SamplingError as error:
            raise _refused(error, job) from None
        if (job.truncate or self._truncate) == "oldest_turns":
            job = replace(job, prompts=tuple(self._cut(prompt, job) for prompt in job.prompts))
        return job, [self._encoding.encode(prompt, job.param) for prompt in job.prompts]

    def _cut(self, prompt: Prompt, job: Job) -> Prompt:
        """A chat without the oldest rounds that there is no room for."""
        if not isinstance(prompt, ChatPrompt):
            return prompt
        room = self._engine.max_model_len - answer_room(job.max_tokens, self._engine.max_model_len)

        def fits(messages: Messages) -> bool:
            return len(self._encoding.encode(replace(prompt, messages=messages), job.param)) <= room

        return replace(prompt, messages=shortest_cut(prompt.messages, fits))

    def _requests(self, job: Job, prompts: list[tuple[int, ...]]) -> Iterable[GenerationRequest]:
        """One for each answer: with a seed, different answers that are the same the next time."""
        seed, limit = job.sampling.seed, self._engine.max_model_len
        for number, prompt_ids in enumerate(prompts):
            budget = answer_budget(len(prompt_ids), job.max_tokens, limit, param=job.param)
            for answer in range(job.num_answers):
                sampling = replace(
                    job.sampling, max_tokens=budget, seed=None if seed is None else _wrapped(seed + answer)
                )
                yield GenerationRequest(
                    f"{job.request_id}-{number * job.num_answers + answer}",
                    prompt_ids,
                    sampling,
                    prompt_logprobs=job.sampling.logprobs if job.echo else None,
                    adapter=job.adapter,
                    goes_on=not isinstance(job.prompts[number], ChatPrompt),
                    group=job.request_id,
                )


def num_messages(job: Job) -> int:
    """Of all chats."""
    return sum(len(prompt.messages) for prompt in job.prompts if isinstance(prompt, ChatPrompt))


def _refused(error: SamplingError, job: Job) -> ApiError:
    """400, with the request's own field: calls of tools are demanded by a schema."""
    param = "tools" if job.calls and error.param == "response_format" else error.param
    return bad_request(f"{param}: {error}", param=param)


def _api_error(error: Exception, param: str) -> ApiError:
    """What a client is told: why the engine will not, but not why it failed."""
    if isinstance(error, EngineStoppedError):
        return unavailable()
    return generation_failed() if isinstance(error, EngineError) else bad_request(f"{param}: {error}", param=param)


def _unit(vector: list[float]) -> tuple[float, ...]:
    """A vector of length 1 in the same direction, as FastChat and OpenAI give them."""
    length = math.hypot(*vector)
    return tuple(value / length for value in vector) if length else tuple(vector)


async def _gather(jobs: Iterable[Coroutine[Any, Any, list[float]]]) -> list[list[float]]:
    """All results; none goes on when one fails."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
