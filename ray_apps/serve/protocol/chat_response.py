"""What `POST /v1/chat/completions` answers: a completion, or a stream of chunks."""

from typing import Any, Literal

from pydantic import BaseModel

from ray_apps.serve.protocol.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TopLogprob(BaseModel):
    """A token that might have been chosen, as text and as bytes, and its log probability."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Of every token of an answer, or of a piece of it."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """A function that the assistant called; `arguments` are a JSON object as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The whole answer: a text, calls, or both."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """One answer."""

    index: int = 0
    message: AssistantMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """An answer in one piece. `dropped_messages`: those that there was no room for."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    dropped_messages: int = 0


class ChunkChoice(BaseModel):
    """A piece of one answer. `delta` has `role`, `content`, `tool_calls`, or nothing at the end."""

    index: int = 0
    delta: dict[str, Any]
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream. `usage` comes in a last chunk of its own, without choices, where it was asked for; the
    counts so far come in every other chunk too, where that was.

    The first chunk of an answer says how many messages there was no room for.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    dropped_messages: int = 0
