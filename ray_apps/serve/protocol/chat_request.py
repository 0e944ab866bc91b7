"""The body of `POST /v1/chat/completions`."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import SamplingFields, Text, Wire, refuse_unless_neutral

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


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise PydanticCustomError("invalid_type", "should be a string or a list of text parts")


class TextPart(Wire):
    """A part of a message. Images, sounds and files are not understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(Wire):
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
        refuse_unless_neutral(value, _NEUTRAL_IN_MESSAGE[info.field_name or ""])

    def to_template(self) -> dict[str, str]:
        """The message as a chat template takes it. Parts of a text are put on lines of their own."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": "\n".join(part.text for part in self.content)}
        return message if self.name is None else {**message, "name": self.name}


class JsonSchema(Wire):
    """A schema that the answer is to follow. It always is followed strictly."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
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


class ChatCompletionRequest(SamplingFields):
    """What a client asks for."""

    messages: list[ChatMessage] = Field(min_length=1)
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logprobs: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: ResponseFormat | None = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    verbosity: Any = None
    web_search_options: Any = None

    @field_validator(*_NEUTRAL, mode="before")
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> None:
        refuse_unless_neutral(value, _NEUTRAL[info.field_name or ""])

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

    @property
    def answer_limit(self) -> int | None:
        """The most tokens the answer may have, under either of the field's two names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
