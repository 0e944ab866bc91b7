"""`POST /v1/chat/completions`: from a request to a job, and from pieces of answers to a completion or to chunks."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import chain

from ray_apps.serve.answers import Deltas, Header, sampling_of, usage_of, whole
from ray_apps.serve.jobs import CalledTool, CallRules, ChatPrompt, Delta, Job, ScoredToken
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.protocol.chat_response import (
    AssistantMessage,
    CalledFunction,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Logprobs,
    TokenLogprob,
    ToolCall,
    TopLogprob,
)
from ray_apps.serve.protocol.messages import to_template
from ray_apps.serve.protocol.usage import Usage
from ray_apps.serve.tools import demand


def make_job(request: ChatCompletionRequest, request_id: str, adapter: str | None = None) -> Job:
    """What the request asks the backend to do."""
    schema = None if request.response_format is None else request.response_format.schema_text
    offered, demanded = request.offered_tools, request.demanded_tools
    several = request.parallel_tool_calls is not False and request.tool_choice in (None, "auto", "required")
    if demanded:
        schema = demand(demanded, several=several)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = sampling_of(request, logprobs=logprobs, json_schema=schema)
    tools = tuple(tool.model_dump(exclude_none=True) for tool in offered)
    prompt = ChatPrompt(to_template(request.messages), tools)
    return Job(
        request_id,
        (prompt,),
        request.answer_limit,
        sampling,
        request.num_answers,
        adapter=adapter,
        streams=bool(request.stream),
        truncate=request.truncate,
        calls=CallRules(bool(demanded), several) if offered else None,
    )


async def complete(header: Header, deltas: Deltas, num_answers: int = 1) -> ChatCompletion:
    """Wait for the whole of all answers."""
    answers, usage = await whole(deltas, num_answers)
    choices = [_choice(index, answer) for index, answer in enumerate(answers)]
    num_dropped = answers[0][-1].num_dropped
    return ChatCompletion(**vars(header), choices=choices, usage=usage, dropped_messages=num_dropped)


def _choice(index: int, answer: list[Delta]) -> Choice:
    reason = answer[-1].finish_reason
    assert reason is not None
    content = "".join(delta.text for delta in answer)
    scored = tuple(chain.from_iterable(delta.logprobs for delta in answer))
    calls = [_call(call) for delta in answer for call in delta.calls]
    message = AssistantMessage(content=content or (None if calls else ""), tool_calls=calls or None)
    return Choice(index=index, message=message, logprobs=_logprobs(scored), finish_reason=reason)


def _call(call: CalledTool) -> ToolCall:
    return ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))


async def chunks(
    header: Header, deltas: Deltas, *, include_usage: bool, counts_on_the_way: bool = False, num_answers: int = 1
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The pieces as chunks."""
    has_begun = False
    num_calls = [0] * num_answers
    async with aclosing(deltas):
        async for delta in deltas:
            usage = usage_of(delta) if counts_on_the_way else None
            for index in range(0 if has_begun else num_answers):
                opening = ChunkChoice(index=index, delta={"role": "assistant", "content": ""})
                yield _chunk(header, opening, usage, dropped_messages=delta.num_dropped)
            has_begun = True
            if delta.text or delta.logprobs:
                content, logprobs = {"content": delta.text}, _logprobs(delta.logprobs)
                yield _chunk(header, ChunkChoice(index=delta.index, delta=content, logprobs=logprobs), usage)
            for call in delta.calls:
                told = {"index": num_calls[delta.index], **_call(call).model_dump()}
                num_calls[delta.index] += 1
                yield _chunk(header, ChunkChoice(index=delta.index, delta={"tool_calls": [told]}), usage)
            if delta.finish_reason:
                yield _chunk(header, ChunkChoice(index=delta.index, delta={}, finish_reason=delta.finish_reason), usage)
    if include_usage:
        yield ChatCompletionChunk(**vars(header), choices=[], usage=usage_of(delta))


def _chunk(header: Header, choice: ChunkChoice, usage: Usage | None, dropped_messages: int = 0) -> ChatCompletionChunk:
    return ChatCompletionChunk(**vars(header), choices=[choice], usage=usage, dropped_messages=dropped_messages)


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
    """As OpenAI writes it: a token that is no whole character is told apart by its bytes; a special one has none."""
    text = one.special or one.token.decode(errors="replace")
    return {"token": text, "bytes": list(one.token), "logprob": one.logprob}
