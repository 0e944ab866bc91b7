"""Tools in a request for a chat: what the assistant may call, what it has called, and what it is to call."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import Text, Wire

MAX_TOOLS = 128
"""Tools that are offered, and calls in a message."""


def _check_type(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "should be the JSON schema of an object")
    return schema


def _read_arguments(text: str) -> str:
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise PydanticCustomError("invalid_value", "should be a JSON object, as text")
    return text


class Function(Wire):
    """A function: its name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_check_type)] | None = None
    strict: bool | None = None


class Tool(Wire):
    """Something that the assistant may call."""

    type: Literal["function"]
    function: Function

    @property
    def schema_(self) -> dict[str, Any]:
        """What its arguments are to follow."""
        return {"type": "object", "properties": {}} if self.function.parameters is None else self.function.parameters


class FunctionName(Wire):
    """The function that is to be called."""

    name: str


class NamedTool(Wire):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Wire):
    """A function that was called."""

    name: str
    arguments: Annotated[Text, AfterValidator(_read_arguments)]


class ToolCall(Wire):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def to_template(self) -> dict[str, Any]:
        """The call as chat templates take it, with its arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}
