"""Tools in a request for a chat: what the assistant may call, what it has called, and what it is to call."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import Text, Wire, check_unicode
from ray_apps.serve.protocol.strict_json import parse_json

MAX_TOOLS = 128
"""Tools that are offered, and calls in a message."""
MAX_ARGUMENT_CHARACTERS = 500_000
"""Of the arguments of all calls in a request, which are read before anything else is done."""


def _check_texts(value: dict[str, Any]) -> dict[str, Any]:
    check_unicode(json.dumps(value, ensure_ascii=False))
    return value


def _check_type(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "should be the JSON schema of an object")
    return _check_texts(schema)


def read_arguments(text: Any) -> dict[str, Any]:
    """The arguments of a call, of which `text` is the JSON.

    Raises:
        PydanticCustomError: it is not that of an object, or not as strict as a body is to be.
    """
    if not isinstance(text, str):
        raise PydanticCustomError("invalid_type", "should be a JSON object, as text")
    try:
        value = parse_json(check_unicode(text).encode())
    except json.JSONDecodeError as error:
        raise PydanticCustomError(
            "invalid_value", "should be a JSON object, as text: {reason}", {"reason": error.msg}
        ) from None
    if not isinstance(value, dict):
        raise PydanticCustomError("invalid_value", "should be a JSON object, as text")
    return _check_texts(value) if "\\u" in text else value


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
    """A function that was called, with its arguments: as text on the wire, and an object from there on."""

    name: Text
    arguments: Annotated[dict[str, Any], BeforeValidator(read_arguments, json_schema_input_type=Text)]


class ToolCall(Wire):
    """A call that the assistant made."""

    id: Text
    type: Literal["function"]
    function: CalledFunction

    def to_template(self) -> dict[str, Any]:
        """The call as chat templates take it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}
