import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.routing import ServedModel
from tests.ray_apps.serve.conftest import Client

USER = {"role": "user", "content": "hi"}
WRONG = {"x-request-timeout": "soon"}


@given(st.text(st.characters(codec="utf-8"), max_size=20))
async def test_a_text_goes_to_ids_and_back(api_client: Client, text: str) -> None:
    async with api_client(FakeEngine(max_model_len=77)) as client:
        tokens = (await client.post("/tokenize", json={"model": "fake", "prompt": text})).json()
        back = (await client.post("/detokenize", json={"model": "fake", "tokens": tokens["tokens"]})).json()
    assert tokens == {"count": len(text.encode()), "max_model_len": 77, "tokens": list(text.encode())}
    assert back == {"prompt": text}


async def test_messages_are_what_a_chat_counts(api_client: Client) -> None:
    async with api_client() as client:
        tokens = (await client.post("/tokenize", json={"messages": [USER]})).json()
        chat = (await client.post("/v1/chat/completions", json={"model": "fake", "messages": [USER]})).json()
    assert tokens["count"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "messages"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [261]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model"),
    ],
)
async def test_what_is_wrong_is_named(api_client: Client, path: str, body: dict[str, Any], param: str) -> None:
    async with api_client() as client:
        response = await client.post(path, json=body)
    assert response.json()["error"]["param"] == param
    assert response.status_code == (404 if param == "model" else 400)


async def test_of_several_models_one_is_to_be_named() -> None:
    models = [ServedModel(name, EngineBackend(FakeEngine())) for name in ("a", "b")]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_api(models)), base_url="http://test") as client:
        unnamed = await client.post("/tokenize", json={"prompt": "x"})
        named = await client.post("/tokenize", json={"prompt": "x", "model": "b"})
    assert unnamed.json()["error"]["param"] == "model"
    assert "valid: a, b" in unnamed.json()["error"]["message"]
    assert named.status_code == 200


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})])
async def test_when_the_time_is_up_it_is_told(path: str, body: dict[str, Any]) -> None:
    class Stuck(EngineBackend):
        async def tokenize(self, job: Any) -> Any:
            await asyncio.Event().wait()

        async def detokenize(self, token_ids: Any) -> Any:
            await asyncio.Event().wait()

    for limit_s, headers, status in ((0.01, {}, 504), (60, {"x-request-timeout": "0.01"}, 504), (60, WRONG, 400)):
        api = create_api([ServedModel("m", Stuck(FakeEngine()), request_timeout_s=limit_s)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            assert (await client.post(path, json=body, headers=headers)).status_code == status
