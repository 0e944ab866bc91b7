"""The body of `POST /v1/chat/completions`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import Items, SamplingFields, Wire, neutral
from ray_apps.serve.protocol.messages import Messages
from ray_apps.serve.protocol.tools import MAX_TOOLS, NamedTool, Tool


def _read_choice(value: Any) -> str | None:
    if value is None or value in ("none", "auto", "required"):
        word: str | None = value
        return word
    try:
        return f"={NamedTool.model_validate(value).function.name}"
    except ValidationError:
        message = "should be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"
        raise PydanticCustomError("invalid_value", message) from None


ToolChoice = Annotated[
    str | None,
    PlainValidator(_read_choice, json_schema_input_type=Literal["none", "auto", "required"] | NamedTool | None),
]
"""A word, or the name of a tool after a `=`."""


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
            return json.dumps(self.json_schema.schema_, ensure_ascii=False)
        return '{"type": "object"}' if self.type == "json_object" else None


class ChatCompletionRequest(SamplingFields):
    """What a client asks for."""

    messages: Messages
    audio: Annotated[None, neutral()] = None
    function_call: Annotated[None, neutral("none", "auto")] = None
    functions: Annotated[None, neutral([])] = None
    logprobs: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    metadata: Any = None
    modalities: Annotated[None, neutral(["text"])] = None
    moderation: Annotated[None, neutral()] = None
    parallel_tool_calls: bool | None = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Annotated[None, neutral("none")] = None
    tools: Items[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = Field(None, validate_default=True)
    response_format: ResponseFormat | None = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    verbosity: Annotated[None, neutral("medium")] = None
    web_search_options: Annotated[None, neutral()] = None

    # Not OpenAI's.
    truncate: Literal["off", "oldest_turns"] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _is_the_only_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_completion_tokens") is not None:
            raise PydanticCustomError("invalid_value", "cannot be set together with 'max_completion_tokens'")
        return value

    @field_validator("tools")
    @classmethod
    def _have_names_of_their_own(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or ()]
        if len(set(names)) < len(names):
            raise PydanticCustomError("invalid_value", "should have names that differ")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _is_among_the_tools(cls, value: str | None, info: ValidationInfo) -> str | None:
        functions = {tool.function.name: tool.function for tool in info.data.get("tools") or ()}
        if value == "required" and not functions:
            raise PydanticCustomError("invalid_value", "is only allowed with 'tools'")
        if value not in (None, "none", "auto", "required") and value.removeprefix("=") not in functions:
            raise PydanticCustomError("invalid_value", "should name one of 'tools'")
        if value in (None, "auto") and any(function.strict for function in functions.values()):
            raise PydanticCustomError(
                "invalid_value",
                "should be 'required' or name a tool where one is 'strict'; no other call is held to it",
            )
        return value

    @field_validator("response_format")
    @classmethod
    def _leaves_room_for_tools(cls, value: ResponseFormat | None, info: ValidationInfo) -> ResponseFormat | None:
        offers_tools = info.data.get("tools") and info.data.get("tool_choice") != "none"
        if offers_tools and value is not None and value.schema_text is not None:
            raise PydanticCustomError("invalid_value", "cannot be set together with 'tools'")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("invalid_value", "is only allowed when 'logprobs' is true")
        return value

    @property
    def offered_tools(self) -> list[Tool]:
        """What the assistant may call, or must."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def demanded_tools(self) -> list[Tool]:
        """Those of which one must be called, if any must."""
        if self.tool_choice == "required":
            return self.offered_tools
        return [tool for tool in self.offered_tools if self.tool_choice == f"={tool.function.name}"]

    @property
    def answer_limit(self) -> int | None:
        """The most tokens the answer may have, under either of the field's two names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
