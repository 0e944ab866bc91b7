"""Tools that a model may call: whether its template has them, how it writes calls, and how calls are demanded."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal

from jsonschema.exceptions import SchemaError

from ray_apps.engine.protocol import MAX_SCHEMA_CHARACTERS
from ray_apps.serve.errors import bad_request
from ray_apps.serve.meta_schema import check_schema
from ray_apps.serve.protocol.tools import Tool

CallFormat = Literal["hermes", "llama", "mistral", "demanded"]
"""How calls are written in an answer.

hermes: `<tool_call>{"name", "arguments"}</tool_call>` between texts, as Hermes and Qwen do. llama: the whole answer is
`{"name", "parameters"}`, perhaps after `<|python_tag|>`, as Llama 3 does. mistral: `[TOOL_CALLS]` and a list, or
`[TOOL_CALLS]name[ARGS]{…}`. demanded: the schema of `demand`, which the engine holds the answer to.
"""


def call_format(chat_template: str) -> CallFormat | None:
    """How a model with this template writes calls; None: it has no tools, or writes calls in a way not known here."""
    if "tools" not in chat_template or "<function=" in chat_template:
        return None
    if "[TOOL_CALLS]" in chat_template:
        return "mistral"
    if "<tool_call>" in chat_template:
        return "hermes"
    if '"parameters"' in chat_template and '"name"' in chat_template:
        return "llama"
    return None


async def check_schemas(tools: Sequence[Tool] | None) -> None:
    """Return if the parameters of `tools` are JSON schemas. Other requests go on meanwhile: large ones take a second.

    Raises:
        ApiError: they are not, or one is too long; it names the tool.
    """
    if tools:
        await asyncio.to_thread(_check_schemas, tools)


def _check_schemas(tools: Sequence[Tool]) -> None:
    for number, tool in enumerate(tools):
        param = f"tools[{number}].function.parameters"
        if (length := len(json.dumps(tool.schema_, ensure_ascii=False))) > MAX_SCHEMA_CHARACTERS:
            reason = f"{param}: the schema has {length} characters; valid: up to {MAX_SCHEMA_CHARACTERS}"
            raise bad_request(reason, param=param)
        try:
            check_schema(tool.schema_)
        except SchemaError as error:
            where = "".join(f"[{part!r}]" for part in error.path)
            reason = f"{param}: is not a valid JSON schema: {where} {error.message[:200]}"
            raise bad_request(reason, param=param) from None


def demand(tools: list[Tool], *, several: bool) -> str:
    """The JSON schema of calls of any of `tools`: of one call, or of a list of at least one."""
    call: dict[str, Any] = {"anyOf": [_call_schema(tool) for tool in tools]}
    if len(tools) == 1:
        call = _call_schema(tools[0])
    return json.dumps({"type": "array", "items": call, "minItems": 1} if several else call, ensure_ascii=False)


def _call_schema(tool: Tool) -> dict[str, Any]:
    # With a name of its own, what a schema refers to by "#/…" is looked for within it.
    arguments = {"$id": f"https://tools.invalid/tool-{tool.function.name}", **tool.schema_}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
