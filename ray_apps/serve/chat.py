"""`POST /v1/chat/completions`: from a request to a job, and from pieces of answers to a completion or to chunks."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import chain

from ray_apps.serve.answers import Deltas, Header, sampling_of, usage_of, whole
from ray_apps.serve.jobs import ChatPrompt, Delta, Job, ScoredToken
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Logprobs,
    TokenLogprob,
    TopLogprob,
)


def make_job(request: ChatCompletionRequest, request_id: str, adapter: str | None = None) -> Job:
    """What the request asks the backend to do."""
    sampling = sampling_of(
        request,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        json_schema=None if request.response_format is None else request.response_format.schema_text,
    )
    prompt = ChatPrompt(tuple(message.to_template() for message in request.messages))
    return Job(
        request_id,
        (prompt,),
        request.answer_limit,
        sampling,
        request.num_answers,
        adapter=adapter,
        streams=bool(request.stream),
    )


async def complete(header: Header, deltas: Deltas, num_answers: int = 1) -> ChatCompletion:
    """Wait for the whole of all answers."""
    answers, usage = await whole(deltas, num_answers)
    choices = [_choice(index, answer) for index, answer in enumerate(answers)]
    return ChatCompletion(**vars(header), choices=choices, usage=usage)


def _choice(index: int, answer: list[Delta]) -> Choice:
    reason = answer[-1].finish_reason
    assert reason is not None
    content = "".join(delta.text for delta in answer)
    scored = tuple(chain.from_iterable(delta.logprobs for delta in answer))
    return Choice(
        index=index, message=AssistantMessage(content=content), logprobs=_logprobs(scored), finish_reason=reason
    )


async def chunks(
    header: Header, deltas: Deltas, *, include_usage: bool, num_answers: int = 1
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The pieces as chunks."""
    for index in range(num_answers):
        yield _chunk(header, ChunkChoice(index=index, delta={"role": "assistant", "content": ""}))
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.text or delta.logprobs:
                content, logprobs = {"content": delta.text}, _logprobs(delta.logprobs)
                yield _chunk(header, ChunkChoice(index=delta.index, delta=content, logprobs=logprobs))
            if delta.finish_reason:
                yield _chunk(header, ChunkChoice(index=delta.index, delta={}, finish_reason=delta.finish_reason))
    if include_usage:
        yield ChatCompletionChunk(**vars(header), choices=[], usage=usage_of(delta))


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
