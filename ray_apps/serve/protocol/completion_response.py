"""What `POST /v1/completions` answers, in one piece or in chunks of the same shape."""

from typing import Literal

from pydantic import BaseModel

from ray_apps.serve.protocol.usage import Usage

FinishReason = Literal["stop", "length", "content_filter"]


class CompletionLogprobs(BaseModel):
    """Of every token: its text, where that begins in the answer, its log probability, and the likeliest beside it.

    The first token of an echoed prompt has none.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """Answers, or one event of a stream. `usage` comes last, in a chunk without choices where it was asked for.

    The counts so far come in every other chunk too, where that was.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
