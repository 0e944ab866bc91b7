"""The messages of a chat."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import MAX_MESSAGES, Items, Text, Wire, neutral
from ray_apps.serve.protocol.strict_json import check_shape
from ray_apps.serve.protocol.tools import MAX_ARGUMENT_CHARACTERS, MAX_TOOLS, ToolCall


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None or isinstance(content, list):
        return content
    raise PydanticCustomError("invalid_type", "should be a string or a list of text parts")


class TextPart(Wire):
    """A part of a message. Images, sounds and files are not understood."""

    type: Literal["text"]
    text: Text


_Parts = Annotated[Items[TextPart], Field(max_length=MAX_MESSAGES)]
Content = Annotated[_Parts | None, BeforeValidator(_as_parts, json_schema_input_type=Text | _Parts | None)]


class ChatMessage(Wire):
    """One message. `developer` is another word for `system`; a `tool` message is what a call gave."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    tool_calls: Items[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: Text | None = Field(None, validate_default=True)
    content: Content = Field(None, validate_default=True)
    name: Text | None = None
    annotations: Annotated[None, neutral([])] = None
    audio: Annotated[None, neutral()] = None
    function_call: Annotated[None, neutral()] = None
    refusal: Annotated[None, neutral()] = None

    @field_validator("tool_calls")
    @classmethod
    def _is_of_an_assistant(cls, value: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("invalid_value", "is only allowed in a message of the assistant")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _is_of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("role", "tool" if value else "") == "tool"):
            raise PydanticCustomError("invalid_value", "is required in a message of a tool, and only allowed there")
        return value

    @field_validator("content")
    @classmethod
    def _is_there_unless_tools_are_called(
        cls, value: list[TextPart] | None, info: ValidationInfo
    ) -> list[TextPart] | None:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "is required")
        return value

    @property
    def template_role(self) -> str:
        """The role as chat templates know it."""
        return "system" if self.role == "developer" else self.role

    def to_template(self) -> dict[str, Any]:
        """The message as a chat template takes it. Parts of a text are put on lines of their own."""
        message: dict[str, Any] = {
            "role": self.template_role,
            "content": "\n".join(part.text for part in self.content or ()),
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": [call.to_template() for call in self.tool_calls or ()] or None,
        }
        return {key: value for key, value in message.items() if value is not None}


def _check_length(messages: Any) -> Any:
    """The texts of arguments take a while to read, and nobody is answered meanwhile."""
    length = sum(map(len, _arguments(messages)))
    if length > MAX_ARGUMENT_CHARACTERS:
        told = {"length": length, "most": MAX_ARGUMENT_CHARACTERS}
        raise PydanticCustomError("too_long", "the arguments of all calls have {length} characters, of {most}", told)
    return messages


def _arguments(messages: Any) -> Iterator[str]:
    """Those that are texts, of messages that have not been looked at yet."""
    for message in messages if isinstance(messages, list) else ():
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str):
                yield arguments


def _check_arguments(messages: list[ChatMessage]) -> list[ChatMessage]:
    """What is in texts is bounded as what is in a body itself."""
    calls = [call for message in messages for call in message.tool_calls or ()]
    try:
        check_shape([call.function.arguments for call in calls])
    except json.JSONDecodeError as error:
        message = "the arguments of all calls together: {reason}"
        raise PydanticCustomError("invalid_value", message, {"reason": error.msg}) from None
    return messages


Messages = Annotated[
    Items[ChatMessage],
    Field(min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_check_length, json_schema_input_type=Items[ChatMessage]),
    AfterValidator(_check_arguments),
]


def to_template(messages: Sequence[ChatMessage]) -> tuple[dict[str, Any], ...]:
    """Messages as a chat template takes them. What a call gave is told with the name of what was called."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    told = [message.to_template() for message in messages]
    for message in told:
        if message["role"] == "tool" and message["tool_call_id"] in names:
            message.setdefault("name", names[message["tool_call_id"]])
    return tuple(told)
