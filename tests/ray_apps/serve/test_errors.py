import json
from collections.abc import Callable
from typing import Any

import pytest

from ray_apps.serve.errors import Failure, error_json
from tests.ray_apps.serve.conftest import Client

Ask = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}

WRONG = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content[0].text", "invalid_value"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[1].tool_calls[0].type",
        "missing_required_parameter",
    ),
    ({"messages": [{**USER, "weight": 0}]}, "messages[0].weight", "unknown_parameter"),
    ({"model": 3}, "model", "invalid_type"),
    ({"model": None}, "model", "invalid_type"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
    ({"presence_penalty": "0"}, "presence_penalty", "invalid_type"),
    ({"logit_bias": {"50256": -100}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": -101}}, "logit_bias[5]", "invalid_value"),
    ({"logit_bias": {"hello": 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"5": 1, "05": 50}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"1_0": 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {" 5": 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"+5": 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"٥": 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"top_logprobs": 5}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 10_000}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 1e-38}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 11}, "repetition_penalty", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "invalid_value"),  # an echo follows no schema
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "12"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_value"),
    ({"seed": "1"}, "seed", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": True}, "seed", "invalid_type"),
    ({"stop": 3}, "stop", "invalid_type"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
    ({"stop": "a" * 1001}, "stop[0]", "invalid_value"),
    ({"stop": list("abcde")}, "stop", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_a": 5}, "top_a", "unknown_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=[f"{param}-{code}" for _, param, code in WRONG])
async def test_a_wrong_request_is_a_400_that_names_the_parameter(
    api_client: Client, ask: Ask, fields: dict[str, Any], param: str, code: str
) -> None:
    async with api_client() as client:
        response = await client.post(
            CHAT, content=json.dumps(ask(**fields)), headers={"content-type": "application/json"}
        )
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert param in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0.0},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "stop_token_ids": []},
        {"logit_bias": {"0": 0, "260": 0}},
        {"logit_bias": {}, "modalities": ["text"], "verbosity": "medium", "reasoning_effort": None},
        {"metadata": {"a": "b"}, "store": True, "user": "me", "safety_identifier": "x", "service_tier": "auto"},
        {"prompt_cache_key": "k", "prediction": {"type": "content", "content": "x"}, "temperature": None, "seed": -1},
    ],
)
async def test_values_that_ask_for_nothing_are_taken(api_client: Client, ask: Ask, fields: dict[str, Any]) -> None:
    async with api_client() as client:
        assert (await client.post(CHAT, json=ask(**fields))).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"messages": 1', b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_a_400(api_client: Client, body: bytes) -> None:
    async with api_client() as client:
        response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_of_another_type_is_told_which_one_is_read(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        response = await client.post(CHAT, content=json.dumps(ask()), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


async def test_numbers_that_are_none_are_refused(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        for number in ("NaN", "Infinity"):
            body = json.dumps(ask(temperature=1)).replace('"temperature": 1', f'"temperature": {number}')
            response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert response.status_code == 400


@pytest.mark.parametrize("model", ["gpt-4o", "", "\ud800"])
async def test_another_model_is_not_found(api_client: Client, ask: Ask, model: str) -> None:
    async with api_client() as client:
        response = await client.post(
            CHAT, content=json.dumps(ask(model=model)), headers={"content-type": "application/json"}
        )
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", CHAT, 405)])
async def test_other_paths_and_methods_have_the_same_shape_of_error(
    api_client: Client, method: str, path: str, status: int
) -> None:
    async with api_client() as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"] or method in response.json()["error"]["message"]


def test_an_error_may_repeat_any_text() -> None:
    written = error_json(Failure(400, "\ud800 🙂", "invalid_request_error", "invalid_value"))
    assert json.loads(written.encode())["error"]["message"] == "\ud800 🙂"
