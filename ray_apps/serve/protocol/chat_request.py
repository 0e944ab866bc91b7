"""The body of `POST /v1/chat/completions`, its fields in the order of the OpenAI reference.

A field is honoured, or it changes nothing about the answer and is ignored, or it may only have a value that asks for
nothing (`_NEUTRAL`). Anything else is refused: no request is answered as if it had said something else.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

# Values that ask for what happens anyway. Null always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
_MAX_STOP_STRINGS = 4
_MAX_STOP_TOKENS = 64
_MAX_BIASES = 1024
_MAX_ANSWERS = 128


def _check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "invalid_unicode", "is not valid Unicode: it holds half of a surrogate pair"
        ) from None
    return text


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise PydanticCustomError("invalid_type", "should be a string or a list of text parts")


def _as_list(stop: Any) -> Any:
    if stop is None:
        return []
    if isinstance(stop, str):
        return [stop]
    if isinstance(stop, list):
        return stop
    raise PydanticCustomError("invalid_type", "should be a string or a list of strings")


def _as_token_ids(biases: Any) -> Any:
    """JSON has no numbers for keys."""
    if not isinstance(biases, dict):
        return biases
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError:
        raise PydanticCustomError("invalid_type", "should map ids of tokens to biases") from None


def _refuse_unless_neutral(value: Any, neutral: tuple[Any, ...]) -> None:
    if value is None or any(type(value) is type(allowed) and value == allowed for allowed in neutral):
        return
    raise PydanticCustomError("unsupported_parameter", "is not supported by this server with this value; leave it out")


Text = Annotated[str, AfterValidator(_check_unicode)]
StopString = Annotated[Text, Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Wire):
    """A part of a message. Images, sounds and files are not understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Wire):
    """One message. `developer` is another word for `system`."""

    role: Literal["developer", "system", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)]
    name: Text | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    refusal: Any = None
    tool_calls: Any = None

    @field_validator(*_NEUTRAL_IN_MESSAGE, mode="before")
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> None:
        _refuse_unless_neutral(value, _NEUTRAL_IN_MESSAGE[info.field_name or ""])

    def to_template(self) -> dict[str, str]:
        """The message as a chat template takes it. Parts of a text are put on lines of their own."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": "\n".join(part.text for part in self.content)}
        return message if self.name is None else {**message, "name": self.name}


class StreamOptions(_Wire):
    """`include_usage` asks for a last chunk with token counts; obfuscation is a matter of transport, and ignored."""

    include_obfuscation: bool | None = None
    include_usage: bool | None = None


class JsonSchema(_Wire):
    """A schema that the answer is to follow. It always is followed strictly."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Wire):
    """Any text, a JSON object whatever it says, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _is_there_where_it_is_named(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (value is not None) != (info.data.get("type") == "json_schema"):
            raise PydanticCustomError("invalid_value", "is for the type 'json_schema', and required there")
        return value

    @property
    def schema_text(self) -> str | None:
        """The schema that the answer is to follow, as JSON text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return '{"type": "object"}' if self.type == "json_object" else None


class ChatCompletionRequest(_Wire):
    """What a client asks for."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str
    audio: Any = None
    frequency_penalty: Penalty | None = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_as_token_ids)] | None = Field(None, max_length=_MAX_BIASES)
    logprobs: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    n: int | None = Field(None, ge=1, le=_MAX_ANSWERS)
    parallel_tool_calls: Any = None
    prediction: Any = None
    presence_penalty: Penalty | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: ResponseFormat | None = None
    safety_identifier: Any = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    service_tier: Any = None
    stop: Annotated[list[StopString], BeforeValidator(_as_list)] = Field(default=[], max_length=_MAX_STOP_STRINGS)
    store: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    user: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    # Not OpenAI's: those that other open servers have too.
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    stop_token_ids: list[int] | None = Field(None, max_length=_MAX_STOP_TOKENS)
    top_k: int | None = Field(None, ge=-1)

    @field_validator(*_NEUTRAL, mode="before")
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> None:
        _refuse_unless_neutral(value, _NEUTRAL[info.field_name or ""])

    @field_validator("max_tokens")
    @classmethod
    def _is_the_only_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_completion_tokens") is not None:
            raise PydanticCustomError("invalid_value", "cannot be set together with 'max_completion_tokens'")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("invalid_value", "is only allowed when 'logprobs' is true")
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("invalid_value", "is only allowed when 'stream' is true")
        return value

    @property
    def answer_limit(self) -> int | None:
        """The most tokens the answer may have, under either of the field's two names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
