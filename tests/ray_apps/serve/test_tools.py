"""Tools over the API: on an echo whose template has them, and on a model that is held to a call."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from pydantic import ConfigDict, create_model
from transformers import AutoTokenizer

from ray_apps.engine.build import build_engine
from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.protocol import MAX_SCHEMA_CHARACTERS, SamplingParams
from ray_apps.serve import tools
from ray_apps.serve.api import create_api
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.chat import make_job
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.routing import ServedModel
from tests import tiny
from tests.ray_apps.serve.conftest import Client

TEMPLATE = "{% if tools %}<tool_call>{% endif %}"
CALL = {"name": "weather", "arguments": {"city": "Köln"}}
CITY = {"enum": ["Köln", "Bonn"]}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
NESTED = {"type": "object", "properties": {"city": {"minLength": "long"}}}
JSON = {"Content-Type": "application/json"}
Ask = Callable[..., dict[str, Any]]


def completions(client: httpx.AsyncClient) -> Any:
    api = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client, max_retries=0)
    return api.chat.completions


def messages(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def called(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", "parameters": parameters}}


async def test_a_call_in_an_answer_is_told_as_one(api_client: Client) -> None:
    asked = {"model": "fake", "messages": messages(f"I look. <tool_call>{json.dumps(CALL)}</tool_call>")}
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        whole = await completions(client).create(**asked, tools=[WEATHER])
        stream = await completions(client).create(**asked, tools=[WEATHER], stream=True)
        told = [chunk.choices[0] async for chunk in stream]
        plain = await completions(client).create(**asked, tools=[WEATHER], tool_choice="none")
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", *CALL.values())
    assert "".join(one.delta.content or "" for one in told) == "I look."
    (piece,) = [call for one in told for call in one.delta.tool_calls or []]
    assert (piece.index, piece.function.name, json.loads(piece.function.arguments)) == (0, *CALL.values())
    assert told[-1].finish_reason == "tool_calls"
    assert plain.choices[0].message.content == asked["messages"][0]["content"]


async def test_what_a_call_gave_goes_back_to_the_model(api_client: Client) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    asked = [
        *messages("What is the weather?"),
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        answer = await completions(client).create(model="fake", messages=asked, tools=[WEATHER])
    assert answer.choices[0].message.content == "What is the weather?"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "wizard"}}}]}, "tools[0]"),
        ({"tools": [TIME, {"type": "function", "function": {"name": "a", "parameters": NESTED}}]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TIME], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [*messages("q"), {"role": "tool", "content": "rain"}]}, "messages[1].tool_call_id"),
        *(
            ({"messages": [*messages("q"), called(arguments)]}, "messages[1].tool_calls[0].function.arguments")
            for arguments in (
                "[]",
                "[" * 100_000,
                '{"a": ' * 500 + "0" + "}" * 500,
                '{"a": [' + "[]," * 10_000 + "[]]}",
                '{"a": NaN}',
                '{"a": 1, "a": 2}',
                '{"a": "\\ud800"}',
                '{"\\ud800": 1}',
            )
        ),
        ({"messages": [called('{"a": [' + "[]," * 999 + "[]]}")] * 11}, "messages"),
        ({"tools": [tool({"description": "\ud800"})]}, "tools[0].function.parameters"),
        ({"tools": [tool({"properties": {"\ud800": {}}})]}, "tools[0].function.parameters"),
    ],
)
async def test_wrong_tools_are_refused_by_name(
    api_client: Client, ask: Ask, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({**ask(), **fields})  # ASCII, so that half a surrogate pair can be sent.
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        response = await client.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


async def test_arguments_of_calls_are_bounded_together(api_client: Client, ask: Ask) -> None:
    calls = [called(json.dumps({"numbers": [1] * 80_000}, separators=(",", ":"))) for _ in range(4)]
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        taken = await client.post("/v1/chat/completions", json=ask(messages=[*messages("q"), *calls[:3]]))
        refused = await client.post("/v1/chat/completions", json=ask(messages=[*messages("q"), *calls]))
    assert (taken.status_code, refused.status_code) == (200, 400)
    error = refused.json()["error"]
    assert error["param"] == "messages"
    assert "the arguments of all calls have 640052 characters, of 500000" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_a_schema_is_as_long_as_one_of_an_answer_may_be(api_client: Client, ask: Ask, path: str) -> None:
    asked = ask() if path.startswith("/v1") else {"messages": messages("q")}
    parameters = {"description": ""}
    parameters["description"] = "字" * (MAX_SCHEMA_CHARACTERS - len(json.dumps(parameters)))
    longer = {"description": f"{parameters['description']}x"}
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        taken = await client.post(path, json={**asked, "tools": [TIME, tool(parameters)]})
        refused = await client.post(path, json={**asked, "tools": [TIME, tool(longer)]})
    assert (taken.status_code, refused.status_code) == (200, 400)
    error = refused.json()["error"]
    assert error["param"] == "tools[1].function.parameters"
    assert error["message"].startswith("tools[1].function.parameters: the schema has 100001 characters")


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "dependencies": {"a": {"type": ["string", *range(14_000)]}}},
        {"$defs": {"a": {"required": "a"}}},
        {"prefixItems": {}},
        {"unevaluatedProperties": 3},
        {"properties": {"a": {"items": {"anyOf": [{"multipleOf": 0}]}}}},
    ],
)
async def test_what_is_no_schema_anywhere_within_is_refused(
    api_client: Client, ask: Ask, parameters: dict[str, Any]
) -> None:
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        response = await client.post("/v1/chat/completions", json=ask(tools=[tool(parameters)]))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[0].function.parameters")


def with_pattern(pattern: str) -> dict[str, Any]:
    return tool({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}})


@pytest.mark.parametrize("pattern", [r"^\p{L}+$", "a{4294967295}", "(" * 2000, "(?i)" + "[\u0000-\uffff]" * 200])
async def test_a_pattern_that_no_call_is_held_to_is_the_models_to_read(
    api_client: Client, ask: Ask, pattern: str
) -> None:
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        response = await client.post("/v1/chat/completions", json=ask(tools=[with_pattern(pattern)]))
    assert response.status_code == 200


@pytest.mark.parametrize(("pattern", "status"), [(r"^\p{L}+$", 200), ("(" * 2000, 400)])
async def test_a_pattern_that_cannot_be_followed_is_refused(held: EngineBackend, pattern: str, status: int) -> None:
    transport = httpx.ASGITransport(create_api([ServedModel("tiny", held)]), raise_app_exceptions=False)
    asked = {"model": "tiny", "messages": messages("q"), "tools": [with_pattern(pattern)], "tool_choice": "required"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        response = await client.post("/v1/chat/completions", json={**asked, "max_tokens": 1})
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["param"] == "tools"


async def test_schemas_are_looked_at_beside_the_event_loop(
    api_client: Client, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    monkeypatch.setattr(tools, "check_schema", lambda schema: threads.add(threading.get_ident()))
    async with api_client(FakeEngine(chat_template=TEMPLATE)) as client:
        assert (await client.post("/v1/chat/completions", json=ask(tools=[WEATHER]))).status_code == 200
        asked = {"messages": messages("q"), "tools": [WEATHER]}
        assert (await client.post("/tokenize", json=asked)).status_code == 200
    assert threads
    assert threading.get_ident() not in threads


async def test_a_model_without_tools_refuses_them(api_client: Client, ask: Ask) -> None:
    called = {"id": "1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    chat = [*messages("q"), {"role": "assistant", "tool_calls": [called]}]
    async with api_client() as client:
        offered = await client.post("/v1/chat/completions", json=ask(tools=[TIME]))
        told = await client.post("/v1/chat/completions", json={**ask(), "messages": chat})
    for response, param in ((offered, "tools"), (told, "messages")):
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert "chat template has no tools" in response.json()["error"]["message"]


@pytest.fixture(scope="module")
def held(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBackend]:
    """A random model whose template offers tools."""
    directory = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("tools") / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool> Call with <tool_call>.{% endfor %}"
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    tokenizer.save_pretrained(directory)
    engine = build_engine("native", str(directory), EngineOptions(device="cpu", dtype="float32"))
    yield EngineBackend(engine)
    engine.shutdown()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"weather"}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {"weather", "time"}),
    ],
)
async def test_a_model_is_held_to_a_call(held: EngineBackend, fields: dict[str, Any], names: set[str]) -> None:
    transport = httpx.ASGITransport(create_api([ServedModel("tiny", held)]), raise_app_exceptions=False)
    asked = {"model": "tiny", "messages": messages("Weather?"), "tools": [WEATHER, TIME], "seed": 1, "n": 4}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        answer = await completions(client).create(**asked, **fields)
    ended = [choice for choice in answer.choices if choice.finish_reason == "tool_calls"]
    assert ended
    for choice in ended:
        (call,) = choice.message.tool_calls
        assert call.function.name in names
        if call.function.name == "weather":
            assert json.loads(call.function.arguments)["city"] in CITY["enum"]


def follows(schema: str, call: Any) -> bool:
    tokenizer = from_tokenizer(tiny.byte_level())
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
    tokens = tokenizer.tokenize_str(json.dumps(call, ensure_ascii=False))
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def nested_tool(name: str, city: str) -> Any:
    """A tool whose parameters have a `Place` of its own within them."""
    strict = ConfigDict(extra="forbid")
    place: Any = create_model("Place", __config__=strict, city=(Literal[city], ...))
    return openai.pydantic_function_tool(create_model(name, __config__=strict, where=(place, ...), back=(place, ...)))


@pytest.mark.parametrize("several", [False, True])
def test_a_call_follows_the_models_within_its_parameters(held: EngineBackend, several: bool) -> None:
    cities = {"fly": "Köln", "drive": "Bonn"}
    tools = [nested_tool(name, city) for name, city in cities.items()]
    request = ChatCompletionRequest(
        model="m", messages=messages("Go"), tools=tools, tool_choice="required", parallel_tool_calls=several
    )
    schema = make_job(request, "id").sampling.json_schema
    assert schema is not None
    held._engine.check_sampling(SamplingParams(1, json_schema=schema))
    for name, its_city in cities.items():
        for city in cities.values():
            call = {"name": name, "arguments": {"where": {"city": its_city}, "back": {"city": city}}}
            assert follows(schema, [call] if several else call) is (city == its_city)
