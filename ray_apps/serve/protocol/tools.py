"""Tools in a request for a chat: what the assistant may call, what it has called, and what it is to call."""

import json
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import Text, Wire


def _check_parameters(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "should be the JSON schema of an object")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "".join(f"[{part!r}]" for part in error.path)
        raise PydanticCustomError(
            "invalid_value", f"is not a valid JSON schema: {where} {error.message[:200]}"
        ) from None
    return schema


def _read_arguments(text: str) -> str:
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise PydanticCustomError("invalid_value", "should be a JSON object, as text")
    return text


class Function(Wire):
    """A function: its name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_check_parameters)] | None = None
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
